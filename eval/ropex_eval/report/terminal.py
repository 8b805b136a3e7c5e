"""The tables and the verdict of a run in the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ropex.sizes import format_size
from ropex_eval.scores.contexts import FEWEST, MARGIN, TELLING
from ropex_eval.scores.definitions import explain
from ropex_eval.scores.results import Change, Results, Retrieval, Winner, clusters, unit
from ropex_eval.scores.verdict import Verdict

_WIDTH = 100

HUGE = 1e6
"""Perplexities from here on are shown as powers of ten, and cut off in plots."""


def render(results: Results) -> str:
    """The tables of a run: strategies down, lengths across, one for each definition; a verdict."""
    protocol, parts = results.protocol, []
    for name in protocol.definitions:
        rows = [
            [text, *(format_perplexity(values[n].perplexity) for n in protocol.lengths)]
            for text, values in results.of(name).items()
        ]
        header = ["L =", *map(format_size, protocol.lengths)]
        title = f"{name}: perplexity of {explain(name, protocol.settings)}"
        parts.append(f"{title}\n{align([header, *rows])}")
    if results.verdicts:
        parts.append(_verdict(results))
    parts += [
        _retrieval(results, task) for task in dict.fromkeys(r.task for r in results.retrieval)
    ]
    return "\n\n".join(parts)


def _retrieval(results: Results, task: str) -> str:
    """Share of answers found at each length, over all depths."""
    here = [row for row in results.retrieval if row.task == task]
    lengths = sorted({row.length for row in here})
    rows = [["L =", *map(format_size, lengths)]]
    for text in dict.fromkeys(row.strategy for row in here):
        mine = {n: [r for r in here if (r.strategy, r.length) == (text, n)] for n in lengths}
        rows.append([text, *(_share(mine[length]) for length in lengths)])
    depths = len({row.depth for row in here})
    return f"{task}: answers found, over {depths} depths\n{align(rows)}"


def suites(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What lm-evaluation-harness found: strategies down, metrics of tasks across; empty without.

    Args:
        found: Strategy to task to metrics. Those that are no numbers are left out.
    """
    names = list(
        dict.fromkeys(
            (task, metric)
            for tasks in found.values()
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
            if isinstance(value, float) and "stderr" not in metric and value >= 0
        )
    )
    header = ["", *(f"{task} {metric.partition(',')[0]}" for task, metric in names)]
    rows = [
        [text, *(_metric(tasks.get(task, {}).get(metric)) for task, metric in names)]
        for text, tasks in found.items()
    ]
    return f"lm-evaluation-harness\n{align([header, *rows])}" if rows else ""


def _metric(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) and value >= 0 else "--"


def _share(rows: Sequence[Retrieval]) -> str:
    trials = sum(row.trials for row in rows)
    return f"{sum(r.accuracy * r.trials for r in rows) / trials:.0%}" if trials else "--"


def _verdict(results: Results) -> str:
    """Safe and useful context of each strategy, and what it costs below the trained length."""
    trained = results.about["model"]["trained_length"]
    rows = [_verdict_row(results, each) for each in results.verdicts]
    within = _within(results)
    shown = format_size(within) if within else format_size(trained)
    longest = format_size(results.protocol.lengths[-1])
    header = ["strategy", f"tax at {shown}", "hurt", f"at {longest}", "hurt", "safe", "useful"]
    lines = [
        f"verdict: how far each is shown to hold (trained at {format_size(trained)} tokens); "
        f"perplexity against none at {shown}",
        align([header, *rows]),
        *(line for note in _notes(results) for line in textwrap.wrap(note, _WIDTH)),
    ]
    return "\n".join(lines)


def _notes(results: Results) -> list[str]:
    """The notes below the table: what is open and why, and which strategy is best."""
    noun, count = unit(results.about), clusters(results.about)
    judged = [each for each in results.verdicts if each.finite]
    lost = [each.strategy for each in results.verdicts if not each.finite]
    notes = [f"hurt: share of {noun} that lose more than {MARGIN} nats a token"]
    if lost:
        notes.append(f"no verdict, as losses are NaN or infinite: {', '.join(lost)}")
    if count and count < FEWEST and not all(map(decided, judged)):
        notes.append(
            f"with fewer than {FEWEST} {noun} only numbers equal to those of none are safe; "
            f"{count} were read"
        )
    opened = [told_open(each, results.about) for each in judged if not decided(each)]
    if opened:
        notes.append(f"open: {'; '.join(opened)}")
    last = results.protocol.lengths[-1]
    return [*notes, *(_winner(each) for each in results.winners if each.length == last)]


def decided(verdict: Verdict) -> bool:
    """Whether more text could change nothing."""
    return verdict.safe_decided and verdict.useful_decided


def told_open(verdict: Verdict, about: Mapping[str, Any]) -> str:
    """What is open in a verdict, and how much text would decide it."""
    where = f"at {format_size(verdict.open.end)}" if verdict.open else "in whether it is useful"
    return f"{verdict.strategy} {where} ({told_needed(verdict, about)})"


def told_needed(verdict: Verdict, about: Mapping[str, Any]) -> str:
    """How much text would decide what is open."""
    noun, count = unit(about), clusters(about)
    if verdict.clusters_needed is not None:
        told = "decide" if verdict.clusters_needed >= FEWEST else "show that it is not safe"
        return f"about {verdict.clusters_needed} {noun} would {told}"
    if count and count < TELLING:
        return f"too few {noun} to say how many would decide"
    return "too close to call"


def _winner(winner: Winner) -> str:
    """Which strategy is best, and how sure that is."""
    at = f"at {format_size(winner.length)}"
    if f"{abs(winner.nll):.3f}" == "0.000":
        return f"best {at}: {winner.strategy} and {winner.second}, which are equal there"
    if winner.low is None or winner.high is None:
        return f"best {at}: {winner.strategy}, before {winner.second}"
    sure, half = "" if winner.high < 0 else ", which may be chance", (winner.high - winner.low) / 2
    return (
        f"best {at}: {winner.strategy}, by {-winner.nll:.3f} ± {half:.3f} "
        f"nats a token before {winner.second} (the same tokens){sure}"
    )


def _verdict_row(results: Results, verdict: Verdict) -> list[str]:
    changes = {
        (each.kind, each.length): each
        for each in results.changes
        if each.strategy == verdict.strategy and each.definition == "fixed"
    }
    tax = changes.get(("tax", _within(results)))
    longest = results.protocol.lengths[-1]
    end = changes.get(("gain", longest), changes.get(("tax", longest)))
    return [
        verdict.strategy, format_change(tax), format_share(tax.hurt if tax else None),
        format_change(end), format_share(end.hurt if end else None),
        format_size(verdict.safe) if verdict.safe else "--",
        format_size(verdict.useful) if verdict.useful else "--",
    ]  # fmt: skip


def format_share(share: float | None) -> str:
    """A share in percent."""
    return "--" if share is None else f"{share:.0%}"


def _within(results: Results) -> int:
    """The longest measured length within the trained one; 0 if there is none."""
    trained, lengths = (results.about["model"]["trained_length"], results.protocol.lengths)
    return max((length for length in lengths if length <= trained), default=0)


def format_change(change: Change | None) -> str:
    """What a strategy changes, as percent of perplexity."""
    return "--" if change is None else percent(change.nll, change.low, change.high)


def percent(nll: float, low: float | None, high: float | None) -> str:
    """A difference of NLL as percent of perplexity, with its 95 % interval."""
    shown = 100 * math.expm1(min(nll, 700))
    if not abs(shown) < HUGE:
        return ">1e6 %" if shown > 0 else "nan"
    if low is None or high is None:
        return f"{shown:+.1f} %"
    ends = " to ".join(_percent(end) for end in (low, high))
    return f"{shown:+.1f} % ({ends})"


def _percent(nll: float) -> str:
    shown = 100 * math.expm1(min(nll, 700))
    if not abs(shown) < HUGE:
        return ">1e6"
    return f"{shown:+.1f}" if abs(shown) < 10 else f"{shown:+.0f}"


def align(rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """Rows as text: the first column to the left, the others to the right if they are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index and numbers else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def format_perplexity(value: float) -> str:
    """Three significant digits, and powers of ten for very large ones."""
    rounded = float(f"{value:.2e}")
    if not math.isfinite(rounded) or rounded >= HUGE:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    digits = 2 - math.floor(math.log10(rounded))
    return f"{rounded:.{max(0, digits)}f}"
