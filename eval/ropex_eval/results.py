"""The numbers of a run, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """One number of a run.

    Attributes:
        strategy: Text form of the strategy.
        metric: `local`, `fixed` or `prefix`; see `ropex_eval.table.mean_nll`.
        length: Tokens of context.
        nll: Mean negative log-likelihood, in nats a token.
        perplexity: `exp(nll)`.
        tokens: Number of tokens that the mean is over.
    """

    strategy: str
    metric: str
    length: int
    nll: float
    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Results:
    """Everything that `results.json` holds.

    Attributes:
        about: Model, data, protocol and versions.
        strategies: Text form to what is known of a strategy: its frequencies' hash, its seconds.
        results: The numbers, by strategy, metric and length.
    """

    about: dict[str, Any]
    strategies: dict[str, dict[str, Any]]
    results: tuple[Result, ...]

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read the results of a run.

        Raises:
            ValueError: The file is damaged, or of another version of ropex.
        """
        path = folder / "results.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"{path} was written by another version of ropex")
            about, rows = content["about"], tuple(map(_row, content["results"]))
            about["model"], about["data"]  # every run says what was measured on what
            return cls(about, content["strategies"], rows)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a run's results, or damaged ({error})") from None

    def including(self, text: str, about: dict[str, Any], rows: list[Result]) -> Results:
        """These results with those of one more strategy, or with its new ones."""
        others = tuple(row for row in self.results if row.strategy != text)
        return Results(self.about, {**self.strategies, text: about}, (*others, *rows))

    def of(self, metric: str) -> dict[str, dict[int, float]]:
        """Perplexities of one metric: strategy to length to value."""
        table: dict[str, dict[int, float]] = {text: {} for text in self.strategies}
        for row in self.results:
            if row.metric == metric:
                table[row.strategy][row.length] = row.perplexity
        return table

    def save(self, folder: Path) -> None:
        """Write `results.json` and `results.csv`, each complete or not at all."""
        content = {
            "schema": SCHEMA,
            "about": self.about,
            "strategies": self.strategies,
            "results": [_json(row) for row in self.results],
        }
        _write(folder / "results.json", json.dumps(content, indent=2) + "\n")
        _write(folder / "results.csv", self._csv())

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.results)
        return buffer.getvalue()


def _json(row: Result) -> dict[str, Any]:
    """A result for JSON, which has no infinity and no NaN: these are written as text."""
    values = asdict(row)
    for key in ("nll", "perplexity"):
        if not math.isfinite(values[key]):
            values[key] = str(values[key])
    return values


def _row(values: dict[str, Any]) -> Result:
    row = Result(**values)
    return replace(row, nll=float(row.nll), perplexity=float(row.perplexity))


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)
