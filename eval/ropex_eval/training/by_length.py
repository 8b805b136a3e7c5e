"""Local perplexity of a model at several lengths, and the file of its measurements."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ropex.files.writing import atomically
from ropex.sizes import format_size
from ropex_eval.report.terminal import format_perplexity, percent
from ropex_eval.running.numbers import exp
from ropex_eval.scores.results import json_safe
from ropex_eval.scores.statistics import Estimate, Totals, estimate


@dataclass(frozen=True)
class ByLength:
    """Local perplexity of a model at several lengths.

    Attributes:
        lengths: Tokens of context, BOS included, in ascending order.
        nll: Mean negative log-likelihood of the targets in nats a token, by length and excerpt.
        clusters: What each excerpt is independent of; see `Corpus.clusters`.
        targets: Tokens of each excerpt that are scored at each length.
        tokens_sha256: Hash of the text; see `Corpus.sha256`.
        trained_length: Tokens that the model was trained at before; None if unknown.
    """

    lengths: tuple[int, ...]
    nll: tuple[tuple[float, ...], ...]
    clusters: tuple[str, ...]
    targets: int
    tokens_sha256: str
    trained_length: int | None = None

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> ByLength:
        """The measurement that `line` was made from.

        Raises:
            ValueError: It is damaged.
        """
        try:
            return cls(
                tuple(line["lengths"]), tuple(tuple(map(float, row)) for row in line["nll"]),
                tuple(line["clusters"]), line["targets"], line["tokens_sha256"],
                line["trained_length"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"a measurement is damaged ({error!r})") from None

    @property
    def estimates(self) -> dict[int, Estimate]:
        """Length to the mean, in nats a token, with its standard error."""
        return {length: estimate(totals) for length, totals in self._totals().items()}

    @property
    def perplexity(self) -> dict[int, float]:
        """Length to perplexity."""
        return {length: exp(each.mean) for length, each in self.estimates.items()}

    def change_from(self, before: ByLength) -> dict[int, Estimate]:
        """The change since an earlier measurement on the same tokens.

        Returns:
            Length to the difference in nats a token, below 0 if the model is better now, with its
            standard error.

        Raises:
            ValueError: It was measured on different tokens.
        """
        if self.tokens != before.tokens:
            raise ValueError("these were not measured on the same text, lengths and targets")
        old = before._totals()
        return {n: estimate(totals.minus(old[n])) for n, totals in self._totals().items()}

    def numbers(self, before: ByLength) -> dict[str, float]:
        """What to log: `ppl_local_512`, `ppl_change_at_512`, and the change that is the tax.

        Changes are in percent of the perplexity. `ppl_tax` is the one at the longest length within
        the trained one, if there is such a length.
        """
        found = {f"ppl_local_{length}": value for length, value in self.perplexity.items()}
        changes = {n: _percent(change.mean) for n, change in self.change_from(before).items()}
        found |= {f"ppl_change_at_{length}": value for length, value in changes.items()}
        within = [n for n in self.lengths if self.trained_length and n <= self.trained_length]
        if within:
            found["ppl_tax"] = changes[within[-1]]
        return found

    def line(self, step: int, before: ByLength) -> dict[str, Any]:
        """A line of the file; changes in percent, with 95 % intervals."""
        changes = self.change_from(before).values()
        return {
            "step": step, "lengths": list(self.lengths),
            "perplexity": list(self.perplexity.values()),
            "change": [_percent(change.mean) for change in changes],
            "interval": [[_percent(end) for end in change.interval] for change in changes],
            "tax": self.numbers(before).get("ppl_tax"), "trained_length": self.trained_length,
            "targets": self.targets, "tokens_sha256": self.tokens_sha256,
            "clusters": list(self.clusters), "nll": [list(row) for row in self.nll],
        }  # fmt: skip

    def told(self, step: int, before: ByLength) -> str:
        """Perplexity and change at each length, in one line for a person."""
        parts = [f"{format_size(n)} {format_perplexity(p)}" for n, p in self.perplexity.items()]
        if before is not self:
            changes = self.change_from(before).values()
            shown = (percent(change.mean, *change.interval) for change in changes)
            parts = [" ".join(pair) for pair in zip(parts, shown, strict=True)]
        return f"step {step}, perplexity at " + ", ".join(parts)

    @property
    def tokens(self) -> tuple[Any, ...]:
        """What must be equal in two measurements to compare them."""
        return self.lengths, self.targets, self.tokens_sha256

    def _totals(self) -> dict[int, Totals]:
        n, clusters = self.targets, self.clusters
        return {
            length: Totals.of((c, n * mean, n, n) for c, mean in zip(clusters, row, strict=True))
            for length, row in zip(self.lengths, self.nll, strict=True)
        }


def _percent(nll: Any) -> Any:
    """A difference of NLL as percent of perplexity."""
    return None if nll is None else 100 * math.expm1(min(nll, 700))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write measurements, one a line, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        text = "".join(json.dumps(json_safe(line)) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8", newline="")


def read_lines(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The lines, up to a step if training resumes from there."""
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if last is None or line["step"] <= last]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); move it away to start again") from None
