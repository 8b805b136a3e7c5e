"""How far each strategy can be used, in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ropex.sizes import format_size
from ropex_eval.report.page.markup import Cell, Markup, Row, table, tag
from ropex_eval.report.page.words import DASH, effect, name, nats, percent, times
from ropex_eval.report.terminal import decided, format_share, told_needed
from ropex_eval.scores.contexts import COLLAPSE, FEWEST, MARGIN
from ropex_eval.scores.results import Change, Results, clusters
from ropex_eval.scores.verdict import Verdict

SAFE = (
    "Safe context: the same tokens are read after ever more text, and compared with no scaling at "
    "the longest length within the trained one. It is the longest context such that at every "
    "measured length up to it two things are shown at 95 %: the tokens cost no more than "
    f"{MARGIN} nats on average, and fewer than one document in ten loses more than {COLLAPSE}. "
    f"That takes at least {FEWEST} documents. Useful context: the longest safe one up to which "
    "they are shown to cost less. What is not shown is not granted. Hurt: the share of documents "
    f"that lose more than {MARGIN} nats."
)
TAX = (
    "Tax: change of perplexity against no scaling at the same length, at the longest length within "
    "the trained one. Gain: against no scaling at that length, shown at the safe context where "
    "that is longer, else at the longest length; below 0 the longer context helps. All are paired "
    "on the same tokens; small figures are 95 % intervals, and the share of documents hurt."
)
_COLUMNS = ("safe context", "useful context", "tax", "gain", "decided?")
_CAPTION = "How far each strategy can be used"
HOW = (SAFE, TAX)


def verdicts(results: Results, chosen: Mapping[str, str], brief: bool = False) -> Markup:
    """A row for each strategy.

    Args:
        results: Of the run.
        chosen: Strategy to the classes of its line.
        brief: Without the bar and the last column, which do not fit on half a page.
    """
    header = ["strategy", _scale(results), *_COLUMNS]
    rows = [_row(each, results, chosen[each.strategy]) for each in results.verdicts]
    if brief:
        return table(_CAPTION, [header[0], *header[2:-1]], [[row[0], *row[2:-1]] for row in rows],
                     "verdicts")  # fmt: skip
    return table(_CAPTION, header, rows, "verdicts")


def _row(verdict: Verdict, results: Results, style: str) -> Row:
    trained = results.about.get("model", {}).get("trained_length")
    return [
        name(verdict.strategy, style),
        Cell(_reach(verdict, results), f"reach {style}"),
        Cell(_context(verdict.safe, trained), label="safe context"),
        Cell(_context(verdict.useful, trained), label="useful context"),
        _tax(verdict, results),
        _gain(verdict, results),
        Cell(_certainty(verdict, results.about)),
    ]


def _context(tokens: int | None, trained: int | None) -> Markup | str:
    if tokens is None:
        return "not shown"
    beside = tag("small", times(tokens, trained)) if trained else Markup()
    return Markup(tag("b", format_size(tokens)) + beside)


def _certainty(verdict: Verdict, about: Mapping[str, Any]) -> str:
    if not verdict.finite:
        return "no verdict: losses are NaN or infinite"
    if decided(verdict):
        return "decided"
    where = f"open at {format_size(verdict.open.end)}" if verdict.open else "useful open"
    read = clusters(about)
    known = f" ({read} read)" if read else ""
    return f"{where}: {told_needed(verdict, about)}{known}"


def _tax(verdict: Verdict, results: Results) -> Cell:
    """The change at the trained length, and the worst below it."""
    taxes = _changes(verdict.strategy, "tax", results.changes)
    if not taxes:
        return Cell(DASH, note="nothing to compare with", label="tax")
    last, worst = taxes[max(taxes)], max(taxes.values(), key=lambda change: change.nll)
    said = percent(worst.nll)
    seen = said != percent(last.nll)
    return _change(last, "tax", f"; worst {said} at {format_size(worst.length)}" if seen else "")


def _gain(verdict: Verdict, results: Results) -> Cell:
    gains = _changes(verdict.strategy, "gain", results.changes)
    if not gains:
        return Cell(DASH, note="nothing to compare with", label="gain")
    return _change(gains.get(verdict.safe or 0, gains[max(gains)]), "gain")


def _changes(strategy: str, kind: str, changes: Iterable[Change]) -> dict[int, Change]:
    """The changes by length on the fixed targets, which the verdict is based on."""
    return {
        each.length: each
        for each in changes
        if (each.strategy, each.kind, each.definition) == (strategy, kind, "fixed")
    }


def _change(change: Change, label: str, more: str = "") -> Cell:
    cell = effect(change.nll, change.low, change.high)
    hurt = "" if change.hurt is None else f"; hurt {format_share(change.hurt)}"
    where = tag("small", f"at {format_size(change.length)}{hurt}{more}")
    return replace(cell, content=Markup(cell.content + where), note=nats(change), label=label)


def _tested(results: Results) -> list[int]:
    """The lengths that the verdicts are based on, in ascending order."""
    steps = [step for each in results.verdicts for step in each.steps]
    ends = {end for step in steps for end in (step.start, step.end)}
    return sorted(ends | {each.safe for each in results.verdicts if each.safe})


def _scale(results: Results) -> Markup:
    """The ends of the bars."""
    first, last = (format_size(_tested(results)[place]) for place in (0, -1))
    ends = tag("span", tag("span", first), tag("span", last), class_="ends")
    return Markup("reach (useful, safe; tick: trained)" + ends)


def _reach(verdict: Verdict, results: Results) -> Markup:
    """A bar over the measured lengths, by doublings: useful, safe, and a tick where trained."""
    tested = _tested(results)
    first, last = tested[0] / 2, tested[-1]

    def share(tokens: int | None) -> str:
        part = math.log2(tokens / first) / math.log2(last / first) if tokens else 0.0
        return f"{100 * min(max(part, 0.0), 1.0):.1f}%"

    trained = results.about.get("model", {}).get("trained_length")
    tick = tag("i", class_="tick", style=f"left:{share(trained)}") if trained else Markup()
    bars = (
        tag("i", class_="safe", style=f"width:{share(verdict.safe)}"),
        tag("i", class_="useful", style=f"width:{share(verdict.useful)}"),
    )
    return tag("span", *bars, tick, class_="bar", aria_hidden="true")
