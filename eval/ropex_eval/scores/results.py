"""The numbers of a run, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.files.writing import atomically
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.sealed import read_rows, seal
from ropex_eval.scores.verdict import Verdict

if TYPE_CHECKING:
    from typing_extensions import Self

SCHEMA = 3
_VERDICTS_OF_DOUBLINGS = 2
"""The schema before: all is as it is now but the verdicts, which rested on another test."""


@dataclass(frozen=True)
class Result:
    """One number of a run.

    Attributes:
        strategy: Text form of the strategy.
        definition: Of perplexity; see `ropex_eval.scores.definitions`.
        length: Tokens of context.
        nll: Mean negative log-likelihood, in nats a token.
        perplexity: `exp(nll)`.
        se: Standard error of `nll`, by cluster; None from one cluster.
        low: Lower end of the 95 % interval of the perplexity; None from one cluster.
        high: Its upper end.
        tokens: Number of tokens that the mean is over.
    """

    strategy: str
    definition: str
    length: int
    nll: float
    perplexity: float
    se: float | None
    low: float | None
    high: float | None
    tokens: int


@dataclass(frozen=True)
class Change:
    """What a strategy changes, on the same tokens: the tax within, the gain beyond.

    Attributes:
        strategy: Text form of the strategy.
        kind: `tax`, against no scaling at the same length, at or below the trained length; or
            `gain`, against no scaling at the longest length within the trained one.
        definition: `local` or `fixed`.
        length: Tokens of context of the strategy.
        against: Tokens of context without scaling.
        nll: Difference in nats a token; below 0 the strategy is better.
        se: Its standard error, paired by cluster; None from one cluster.
        low: Lower end of its 95 % interval; None from one cluster.
        high: Its upper end.
        hurt: Share of documents whose tokens cost more by over `contexts.MARGIN` nats.
    """

    strategy: str
    kind: str
    definition: str
    length: int
    against: int
    nll: float
    se: float | None
    low: float | None
    high: float | None
    hurt: float | None = None


@dataclass(frozen=True)
class Winner:
    """The best strategy at a length by fixed targets, and the next one, on the same tokens.

    Attributes:
        length: Tokens of context.
        strategy: Text form of the best.
        second: Text form of the next.
        nll: Difference in nats a token, at most 0.
        se: Its standard error, paired by cluster; None from one cluster.
        low: Lower end of its 95 % interval; None from one cluster.
        high: Its upper end.
    """

    length: int
    strategy: str
    second: str
    nll: float
    se: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """Mean negative log-likelihood over a stretch of positions, of one strategy.

    Attributes:
        strategy: Text form of the strategy.
        start: First position, counted from the beginning of an excerpt with BOS.
        end: One past the last position.
        nll: In nats a token.
        se: Standard error by cluster; None from one cluster.
    """

    strategy: str
    start: int
    end: int
    nll: float
    se: float | None


@dataclass(frozen=True)
class Retrieval:
    """How often answers are found, of one task at one length and depth.

    Attributes:
        strategy: Text form of the strategy.
        task: See `ropex_eval.tasks`.
        length: Tokens of context.
        depth: Where the answer stands, from 0 at the beginning to 1; None where it has no place.
        accuracy: Share of answers that greedy decoding would give.
        low: Lower end of its 95 % interval (Wilson).
        high: Its upper end.
        logprob: Mean log-probability of a token of the answer.
        rank: Median rank of a token of the answer; 0 is the most probable.
        trials: Number of answers.
    """

    strategy: str
    task: str
    length: int
    depth: float | None
    accuracy: float
    low: float
    high: float
    logprob: float
    rank: float
    trials: int


@dataclass(frozen=True)
class Results:
    """Everything that `results.json` holds.

    Attributes:
        about: Model, data, versions and warnings.
        protocol: Lengths, definitions and their settings.
        strategies: Text form to what is known of a strategy: its frequencies and their hash.
        results: Perplexities, by strategy, definition and length.
        changes: Tax and gain, by strategy and length.
        verdicts: Safe and useful context, by strategy.
        winners: The best strategy, by length.
        curve: Negative log-likelihood by position.
        retrieval: By strategy, task, length and depth.
    """

    about: dict[str, Any]
    protocol: Protocol
    strategies: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: tuple[Result, ...] = ()
    changes: tuple[Change, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    winners: tuple[Winner, ...] = ()
    curve: tuple[Point, ...] = ()
    retrieval: tuple[Retrieval, ...] = ()

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read the results of a run.

        Raises:
            ValueError: The file is damaged or changed, or of another version of ropex.
        """
        path = Path(folder) / "results.json"
        content = _read(path)
        try:
            stated, schema = content.pop("sha256", None), content["schema"]
            if schema == SCHEMA and stated != seal(content):
                raise ValueError(
                    f"{path} is damaged, or was changed after ropex wrote it; start its ropex eval "
                    "again with --force, and keep numbers of your own in other files"
                )
            del content["schema"]
            if schema not in (_VERDICTS_OF_DOUBLINGS, SCHEMA):
                raise ValueError(f"{path} was written by another version of ropex")
            about, strategies = content.pop("about"), content.pop("strategies")
            # Every run says what was measured on what.
            about["model"] | about["data"] | about["versions"] | strategies
            protocol = Protocol.read(about["protocol"], about["data"]["tokens"])
            about = {part: known for part, known in about.items() if part != "protocol"}
            if schema != SCHEMA and content.pop("verdicts", ()):
                about["warnings"] = [*about.get("warnings", ()), _LEFT_OUT]
            parts = {name: read_rows(_ROWS[name], rows) for name, rows in content.items()}
            return cls(about, protocol, strategies, **parts)
        except (AttributeError, LookupError, TypeError, OverflowError) as error:
            raise ValueError(f"{path} {_DAMAGED} ({error})") from None

    def of(self, definition: str) -> dict[str, dict[int, Result]]:
        """The results of one definition: strategy to length to result."""
        table: dict[str, dict[int, Result]] = {text: {} for text in self.strategies}
        for row in self.results:
            if row.definition == definition:
                table[row.strategy][row.length] = row
        return table

    @property
    def verdict(self) -> dict[str, Verdict]:
        """Strategy to how far it is shown to hold; empty where there is nothing to compare with."""
        return {each.strategy: each for each in self.verdicts}

    def frame(self) -> Any:
        """A pandas DataFrame, one row for every strategy, definition and length.

        Columns are those of `results.csv`: the attributes of `Result`, and `hurt`.
        """
        import pandas

        return pandas.DataFrame(self.flat(), columns=list(COLUMNS))

    def save(self, folder: Path) -> None:
        """Write `results.json` and `results.csv`, each complete or not at all."""
        write(folder / "results.json", self.to_json())
        write(folder / "results.csv", self._csv())

    def to_json(self) -> str:
        """Everything, as a file holds it."""
        parts = {name: [json_safe(asdict(row)) for row in getattr(self, name)] for name in _ROWS}
        about = {**self.about, "protocol": self.protocol.stored}
        content = {"schema": SCHEMA, "about": about, "strategies": self.strategies, **parts}
        return json.dumps({**content, "sha256": seal(content)}, indent=2) + "\n"

    def flat(self) -> list[dict[str, Any]]:
        """Every perplexity with the share of documents that are hurt, where it was compared."""
        hurt = {(each.strategy, each.definition, each.length): each.hurt for each in self.changes}
        return [
            {**asdict(row), "hurt": hurt.get((row.strategy, row.definition, row.length))}
            for row in self.results
        ]

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(self.flat())
        return buffer.getvalue()


COLUMNS = (*(each.name for each in fields(Result)), "hurt")
"""Of a table with every perplexity."""


def unit(about: Mapping[str, Any]) -> str:
    """What intervals are clustered by."""
    return str(about.get("data", {}).get("clusters", "documents"))


def clusters(about: Mapping[str, Any]) -> int | None:
    """How many independent pieces of text were read; None if the run does not say."""
    data = about.get("data", {})
    count = data.get("excerpts") if unit(about) == "excerpts" else len(data.get("documents", ()))
    return count or None


_LEFT_OUT = (
    "these numbers were written by an earlier version of ropex, whose verdicts rested on another "
    "test and are left out; ropex eval again, or ropex report --definitions, draws new ones"
)
_ROWS: dict[str, type[Any]] = {
    "results": Result, "changes": Change, "verdicts": Verdict, "winners": Winner, "curve": Point,
    "retrieval": Retrieval,
}  # fmt: skip


_DAMAGED = "is not a run's results, or damaged"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} {_DAMAGED} ({error})") from None


def require_run(folder: Path) -> None:
    """Raise a FileNotFoundError unless a folder holds the results of a run."""
    if not (folder / "results.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run of ropex eval (no results.json)")


def write(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def json_safe(value: Any) -> Any:
    """A value for JSON, which has no infinity and no NaN: these are written as text."""
    if isinstance(value, dict):
        return {key: json_safe(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
