"""The sections of the page below the verdict; empty where the run has no such numbers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ropex.sizes import format_size
from ropex_eval.report import tables
from ropex_eval.report.page import words
from ropex_eval.report.page.markup import Cell, Markup, Row, join, table, tag
from ropex_eval.report.page.words import DASH, effect, name, number, perplexity, short
from ropex_eval.report.terminal import format_share
from ropex_eval.scores.results import Change, Point, Result, Results

Styles = Mapping[str, str]

CURVE = (
    "Mean negative log-likelihood of the tokens at each stretch of positions, over all excerpts, "
    "read in one pass. The text differs from stretch to stretch, so compare strategies at a "
    "position, not positions."
)
CHANGES = (
    "Change of perplexity, paired on the same tokens; 95 % intervals below. Tax: against no "
    "scaling at the same length. Gain: against no scaling at the longest length within the trained "
    "one. Hurt: the share of documents that lose more than the margin of a verdict. Coloured where "
    "the whole interval is on one side of 0: orange is worse, blue is better."
)
WAVELENGTHS = (
    "Tokens that a pair of dimensions needs for a full turn, 2π over its frequency at the longest "
    "length. Pairs above the trained length never made a full turn in training. ∞: a pair that "
    "does not turn."
)
_AT = {"local": "the last tokens of each length", "fixed": "the same tokens at every length"}


def section(title: str, *content: str, place: str) -> Markup:
    """A part of the page that can be linked to."""
    return tag("section", tag("h2", title), *content, id=place)


def how(text: str) -> Markup:
    """A line on how a number is computed."""
    return tag("p", text, class_="how")


def chart(kind: str, label: str) -> Markup:
    """Where the script draws a chart."""
    without = tag("noscript", tag("p", "Charts need JavaScript; all numbers are in the tables."))
    return tag("figure", without, class_="chart", data_chart=kind, data_label=label)


def perplexities(results: Results, explained: Mapping[str, str], chosen: Styles) -> Markup:
    """The main chart, and a table of each definition, of which its toggle picks one."""
    names = tables.definitions(results)
    if not names:
        return Markup()
    parts = [definition(results, each, explained, chosen) for each in names]
    return section(
        "Perplexity against length", chart("perplexity", "Perplexity against length in tokens"),
        *parts, _download(results), place="perplexity",
    )  # fmt: skip


def definition(results: Results, each: str, explained: Mapping[str, str], chosen: Styles) -> Markup:
    """The numbers of one definition, with buttons that copy them."""
    columns = tables.lengths(results, each)
    rows: list[Row] = [
        [name(text, chosen[text]), *(_perplexity(row.get(length)) for length in columns)]
        for text, row in results.of(each).items()
    ]
    buttons = [
        tag("button", f"Copy as {label}", type="button", hidden=True, data_copy=form)
        for form, label in (("markdown", "Markdown"), ("latex", "LaTeX"))
    ]
    return tag(
        "div",
        tag("h3", each),
        how(explained[each]) if each in explained else "",
        table(f"Perplexity ({each}) by length, 95 % intervals below",
              ["strategy", *map(format_size, columns)], rows),
        tag("p", *buttons, class_="buttons"),
        data_definition=each,
    )  # fmt: skip


def _perplexity(result: Result | None) -> Cell:
    if result is None:
        return Cell("")
    interval = ""
    if result.low is not None and result.high is not None:
        interval = f"{perplexity(result.low)} to {perplexity(result.high)}"
    error = "" if result.se is None else f" ± {number(result.se)} (standard error)"
    note = f"{number(result.nll)}{error} nats a token, over {words.plural(result.tokens, 'tokens')}"
    return Cell(join([perplexity(result.perplexity), tag("small", interval)]), note=note)


def _download(results: Results) -> Markup:
    text = tables.csv_text(tables.tidy(results))
    coded = base64.b64encode(text.encode("utf-8", "replace")).decode()
    link = tag("a", "Download all numbers as CSV", class_="button", download="results.csv",
               href=f"data:text/csv;charset=utf-8;base64,{coded}")  # fmt: skip
    return tag("p", link, class_="buttons")


def curve(results: Results) -> Markup:
    """Loss by position: the chart, and its numbers folded away."""
    if not results.curve:
        return Markup()
    starts = sorted({(each.start, each.end) for each in results.curve})
    known = {(each.strategy, each.start, each.end): each for each in results.curve}
    texts = list(dict.fromkeys(each.strategy for each in results.curve))
    rows = []
    for start, end in starts:
        cells = [known.get((text, start, end)) for text in texts]
        rows.append([f"{start}{DASH}{end - 1}", *map(_loss, cells)])
    folded = fold("Numbers", table("Negative log-likelihood by position ± standard error, in nats",
                                   ["positions", *map(short, texts)], rows))  # fmt: skip
    drawn = chart("curve", "Negative log-likelihood against position in tokens")
    return section("Loss by position", how(CURVE), drawn, folded, place="curve")


def _loss(point: Point | None) -> str:
    if point is None:
        return ""
    return number(point.nll) + ("" if point.se is None else f" ± {number(point.se)}")


def changes(results: Results, chosen: Styles) -> Markup:
    """Tax and gain at every length."""
    names = sorted({each.definition for each in results.changes}, key=lambda each: each != "fixed")
    shown = [_changes(results, each, chosen) for each in names]
    return section("Tax and gain", how(CHANGES), *shown, place="changes") if shown else Markup()


def _changes(results: Results, definition: str, chosen: Styles) -> Markup:
    own = [each for each in results.changes if each.definition == definition]
    known = {(each.strategy, each.kind, each.length): each for each in own}
    columns = sorted(
        {(each.kind, each.length) for each in own}, key=lambda c: (c[0] != "tax", c[1])
    )
    rows: list[Row] = []
    for text in dict.fromkeys(each.strategy for each in own):
        cells = [known.get((text, *column)) for column in columns]
        rows.append([name(text, chosen[text]), *(
            _change(each) if each else "" for each in cells
        )])  # fmt: skip
    header = [f"{kind} at {format_size(length)}" for kind, length in columns]
    where = f": {_AT[definition]}" if definition in _AT else ""
    return table(f"{definition}{where}", ["strategy", *header], rows)


def _change(change: Change) -> Cell:
    note = f"{words.nats(change)} against none at {format_size(change.against)}"
    cell = effect(change.nll, change.low, change.high, note)
    if change.hurt is None:
        return cell
    hurt = tag("small", f"hurt {format_share(change.hurt)}")
    return replace(cell, content=Markup(cell.content + hurt))


def fold(title: str, *content: str) -> Markup:
    """Content that is folded away."""
    return tag("details", tag("summary", title), *content)


def wavelengths(results: Results) -> Markup:
    """What each strategy does to the rotary embedding."""
    known = {text: info["wavelengths"] for text, info in results.strategies.items()
             if info.get("wavelengths")}  # fmt: skip
    if not known:
        return Markup()
    most = max(map(len, known.values()))
    rows = [
        [str(pair), *(_wavelength(values[pair : pair + 1]) for values in known.values())]
        for pair in range(most)
    ]
    folded = fold(
        "Numbers", table("Wavelength of each pair, in tokens", ["pair", *map(short, known)], rows)
    )
    drawn = chart("wavelengths", "Wavelength against pair of dimensions")
    return section("Wavelengths", how(WAVELENGTHS), drawn, folded, place="wavelengths")


def _wavelength(values: Sequence[float | None]) -> str:
    return "" if not values else "∞" if values[0] is None else number(values[0])
