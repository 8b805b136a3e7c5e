"""What a rule looks like, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from ropex.config.edits import Edit

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

_Place = TypeVar("_Place")

Severity: TypeAlias = Literal["error", "warning", "note"]
"""`error`: some engine computes something else or stops; `warning`: it may, or a limit is in the
way; `note`: good to know, and no reason to fail."""


@dataclass(frozen=True)
class Problem:
    """What a rule has found at one place.

    Attributes:
        where: The place: a file, or a file and keys.
        message: What is wrong, and what follows from it.
        edits: What fixes it; none where a person has to decide.
        advice: What that person does.
        severity: If it is not that of the rule.
        engines: If not all of the rule go wrong here.
    """

    where: str
    message: str
    edits: tuple[Edit, ...] = ()
    advice: str = ""
    severity: Severity | None = None
    engines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One thing that is looked at.

    Attributes:
        name: Short and stable.
        severity: Of its findings, unless one says otherwise.
        engines: Which of them go wrong, unless a finding says fewer.
        check: Yields a problem for each place that breaks the rule.
    """

    name: str
    severity: Severity
    engines: tuple[str, ...]
    check: Callable[[Checkpoint], Iterator[Problem]]

    @property
    def about(self) -> str:
        """What the rule looks at, in a sentence."""
        return (self.check.__doc__ or "").strip().splitlines()[0]

    def findings(self, checkpoint: Checkpoint) -> Iterator[Finding]:
        """Everything in `checkpoint` that breaks the rule."""
        for problem in self.check(checkpoint):
            yield self._finding(problem)

    def _finding(self, problem: Problem) -> Finding:
        # What cannot be written as strict JSON is not written at all.
        edits = problem.edits if all(_strict(edit.value) for edit in problem.edits) else ()
        return Finding(
            self.name,
            problem.severity or self.severity,
            problem.where,
            problem.message,
            problem.engines or self.engines,
            "; ".join(map(str, edits)) or problem.advice,
            edits,
        )


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        rule: The name of the rule.
        severity: How bad it is.
        where: A file, or a file and keys.
        message: What is wrong, and what follows from it.
        engines: Which engines go wrong.
        fix: What fixes it, in words.
        edits: The same as changes to JSON files; none where a person has to decide.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    engines: tuple[str, ...]
    fix: str
    edits: tuple[Edit, ...] = ()

    @property
    def fixable(self) -> bool:
        """Whether `repair` fixes it."""
        return bool(self.edits)

    def to_json(self) -> dict[str, Any]:
        """The finding for programs."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "where": self.where,
            "message": self.message,
            "engines": list(self.engines),
            "fix": self.fix,
            "fixable": self.fixable,
            "edits": [edit.to_json() for edit in self.edits],
        }


def on_each(
    found: Callable[[Checkpoint], Iterable[_Place]],
) -> Callable[[Callable[[_Place], Iterator[Problem]]], Callable[[Checkpoint], Iterator[Problem]]]:
    """A decorator that makes the check of one place that of all places in a checkpoint."""

    def on_all(
        check: Callable[[_Place], Iterator[Problem]],
    ) -> Callable[[Checkpoint], Iterator[Problem]]:
        @wraps(check)
        def check_all(checkpoint: Checkpoint) -> Iterator[Problem]:
            for place in found(checkpoint):
                yield from check(place)

        return check_all

    return on_all


def _strict(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
