"""What a rule looks like, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

Severity: TypeAlias = Literal["error", "warning", "note"]
"""`error`: some engine computes something else or stops; `warning`: it may, or a limit is in the
way; `note`: good to know, and no reason to fail."""

Path: TypeAlias = tuple[str, ...]
"""Keys that lead to a value of a JSON file."""

_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Edit:
    """One change of a JSON file.

    Attributes:
        file: Its name.
        path: Which value.
        value: The new one.
        remove: Whether the key goes instead.
    """

    file: str
    path: Path
    value: Any = None
    remove: bool = False

    def __str__(self) -> str:
        if self.remove:
            return f"remove {dotted(self.path)}"
        return f"set {dotted(self.path)} to {shown(self.value)}"

    def to_json(self) -> dict[str, Any]:
        """The edit for programs."""
        what = {"remove": True} if self.remove else {"value": self.value}
        return {"file": self.file, "path": list(self.path), **what}


@dataclass(frozen=True)
class Problem:
    """What a rule has found at one place.

    Attributes:
        where: The place: a file, or a file and keys.
        message: What is wrong, and what follows from it.
        edits: What mends it; none where that takes a person's decision.
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
        fix: What mends it, in words.
        edits: The same as changes of JSON files; none where it takes a person's decision.
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
        """Whether `repair` mends it."""
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


def dotted(path: Path) -> str:
    """Keys as a person writes them; odd ones quoted, so that no terminal acts on them."""
    return ".".join(key if key.isidentifier() and key.isascii() else shown(key) for key in path)


def shown(value: Any) -> str:
    """A value as JSON in ASCII, cut where it is long."""
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number too long to print"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."


def _strict(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
