"""Two runs on the same text, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ropex.sizes import format_size
from ropex_eval.report import tables
from ropex_eval.report.page import words
from ropex_eval.report.page.data import perplexities
from ropex_eval.report.page.document import document
from ropex_eval.report.page.headline import headline
from ropex_eval.report.page.markup import Cell, Markup, Row, join, table, tag
from ropex_eval.report.page.origin import origins, said, summary, warnings
from ropex_eval.report.page.sections import chart, how, section
from ropex_eval.report.page.verdicts import HOW, verdicts
from ropex_eval.report.page.words import effect, name
from ropex_eval.scores.results import Results

PAIRED = (
    "What B changes against A, on the same tokens: perplexity in percent, with its 95 % interval; "
    "below 0 B is better. Hover for nats."
)


@dataclass(frozen=True)
class Difference:
    """What the right run changes against the left one, on the same tokens.

    Attributes:
        strategy: Text form of the strategy, which both runs have.
        definition: Of perplexity.
        length: Tokens of context.
        nll: Right minus left, in nats a token; below 0 the right one is better.
        se: Its standard error, paired by cluster; None from one cluster.
        low: Lower end of its 95 % interval; None from one cluster.
        high: Its upper end.
    """

    strategy: str
    definition: str
    length: int
    nll: float
    se: float | None
    low: float | None
    high: float | None


def compare(left: Results, right: Results, differences: Sequence[Difference]) -> str:
    """The page of two runs.

    Args:
        left: Shown as A.
        right: Shown as B.
        differences: B minus A, where both have a number. The caller ensures that they read the
            same text.
    """
    texts = dict.fromkeys((*left.strategies, *right.strategies))
    chosen = (words.styles(texts), words.styles(texts, run=1))
    names = dict.fromkeys((*tables.definitions(left), *tables.definitions(right)))
    body = join([
        _head(left, right),
        _verdicts((left, right), chosen),
        _perplexities(tuple(names), differences, chosen[0]),
        _origins(left, right),
    ])  # fmt: skip
    title = f"{words.model_name(left.about)} and {words.model_name(right.about)}, two runs of ropex"
    return document(title, body, _data((left, right), tuple(names), chosen))


def _data(
    runs: tuple[Results, Results], names: Sequence[str], chosen: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    trained = {run.about.get("model", {}).get("trained_length") for run in runs} - {None}
    lines = {
        each: [
            line
            for badge, run, own in zip(("A ", "B "), runs, chosen, strict=True)
            for line in perplexities(run, each, own, badge)
        ]
        for each in names
    }
    return {"trained": sorted(trained), "perplexity": lines, "texts": {}}


def _head(left: Results, right: Results) -> Markup:
    lines = [
        tag("p", _badge(letter), " ", tag("b", words.model_name(run.about)), " ",
            summary(run), class_="lead")
        for letter, run in (("A", left), ("B", right))
    ]  # fmt: skip
    return tag("header", tag("h1", "Two runs side by side"), *lines)


def _badge(letter: str) -> Markup:
    return tag("b", letter, class_=f"badge {letter.lower()}")


def _verdicts(runs: tuple[Results, Results], chosen: Sequence[Mapping[str, str]]) -> Markup:
    columns = [
        tag("div", tag("h3", _badge(letter), " ", words.model_name(run.about)), headline(run),
            verdicts(run, own, brief=True) if run.verdicts else Markup())
        for letter, run, own in zip("AB", runs, chosen, strict=True)
    ]  # fmt: skip
    return section("Verdicts", tag("div", *columns, class_="pair"), *map(how, HOW), place="verdict")


def _perplexities(
    names: Sequence[str], differences: Sequence[Difference], chosen: Mapping[str, str]
) -> Markup:
    shown = [
        tag("div", tag("h3", each), _paired(each, differences, chosen), data_definition=each)
        for each in names
    ]
    return section(
        "Perplexity against length", chart("perplexity", "Perplexity of both runs by length"),
        how(PAIRED), *shown, place="perplexity",
    )  # fmt: skip


def _paired(
    definition: str, differences: Sequence[Difference], chosen: Mapping[str, str]
) -> Markup:
    own = [each for each in differences if each.definition == definition]
    if not own:
        return tag("p", "No strategy and length of this definition is in both runs.")
    columns = sorted({each.length for each in own})
    known = {(each.strategy, each.length): each for each in own}
    rows: list[Row] = [
        [name(text, chosen[text]), *(_cell(known.get((text, length))) for length in columns)]
        for text in dict.fromkeys(each.strategy for each in own)
    ]
    header = ["strategy", *map(format_size, columns)]
    return table(f"B against A, perplexity ({definition})", header, rows)


def _cell(difference: Difference | None) -> Cell:
    if difference is None:
        return Cell("")
    return effect(difference.nll, difference.low, difference.high, words.nats(difference))


def _origins(left: Results, right: Results) -> Markup:
    theirs = origins(right)
    rows = [
        row for part, ours in origins(left).items() for row in _origin(part, ours, theirs[part])
    ]
    commands = [str(each.about.get("command") or "") for each in (left, right)]
    if any(commands):
        rows.append(_facts("command", *commands))
    notes = [
        warnings(run.about, f" of {letter}")
        for letter, run in (("A", left), ("B", right))
        if run.about.get("warnings")
    ]
    shown = table("What both runs are of; what differs is marked", ["", "A", "B"], rows, "facts")
    return section("Where this comes from", *notes, shown, place="about")


def _origin(part: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Row]:
    return [
        _facts(f"{part} {key}".replace("_", " "), said(left.get(key, "")), said(right.get(key, "")))
        for key in dict.fromkeys((*left, *right))
    ]


def _facts(title: str, left: str, right: str) -> Row:
    kind = "differs" if left != right else None
    return [title, Cell(left, kind), Cell(right, kind)]
