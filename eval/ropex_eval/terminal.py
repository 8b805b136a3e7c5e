"""What a person sees of a run in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ropex.sizes import format_size
from ropex_eval.definitions import Settings, explain
from ropex_eval.results import Change, Results, Retrieval, Verdict, Winner

_MANY = 1000

HUGE = 1e6
"""Nobody reads digits from here on, nor a curve."""


def render(results: Results) -> str:
    """The tables of a run: strategies down, lengths across, one for each definition; a verdict."""
    protocol = results.about["protocol"]
    parts = []
    for name in protocol["definitions"]:
        rows = [
            [text, *(format_perplexity(values[n].perplexity) for n in protocol["lengths"])]
            for text, values in results.of(name).items()
        ]
        header = ["L =", *map(format_size, protocol["lengths"])]
        title = f"{name}: perplexity of {explain(name, settings_of(results))}"
        parts.append(f"{title}\n{align([header, *rows])}")
    if results.verdicts:
        parts.append(_verdict(results))
    parts += [
        _retrieval(results, task) for task in dict.fromkeys(r.task for r in results.retrieval)
    ]
    return "\n\n".join(parts)


def _retrieval(results: Results, task: str) -> str:
    """Share of answers that are found at each length, over all depths."""
    here = [row for row in results.retrieval if row.task == task]
    lengths = sorted({row.length for row in here})
    rows = [["L =", *map(format_size, lengths)]]
    for text in dict.fromkeys(row.strategy for row in here):
        mine = {n: [r for r in here if (r.strategy, r.length) == (text, n)] for n in lengths}
        rows.append([text, *(_share(mine[length]) for length in lengths)])
    depths = len({row.depth for row in here})
    return f"{task}: answers found, over {depths} depths\n{align(rows)}"


def _share(rows: Sequence[Retrieval]) -> str:
    trials = sum(row.trials for row in rows)
    return f"{sum(r.accuracy * r.trials for r in rows) / trials:.0%}" if trials else "--"


def settings_of(results: Results) -> Settings:
    """What the definitions of a run were measured with."""
    protocol = results.about["protocol"]
    named = ("targets", "stride", "short", "evaluator")
    return Settings(**{name: protocol[name] for name in named})


def _verdict(results: Results) -> str:
    """How far each strategy reaches, and what it costs below the trained length."""
    trained = results.about["model"]["trained_length"]
    rows = [_verdict_row(results, each) for each in results.verdicts]
    within = _within(results)
    shown = format_size(within) if within else format_size(trained)
    longest = format_size(results.about["protocol"]["lengths"][-1])
    header = ["strategy", f"tax at {shown}", "at safe", f"at {longest}", "safe", "useful"]
    lines = [
        f"verdict: how far each can be used (trained at {format_size(trained)} tokens), and its "
        f"perplexity against none at {shown}",
        align([header, *rows]),
    ]
    if needed := [each.clusters_needed for each in results.verdicts if each.clusters_needed]:
        most = max(needed)
        shown = f"about {most}" if most <= _MANY else f"more than {_MANY}"
        lines.append(f"? undecided; {shown} {results.about['data']['clusters']} would tell")
    if results.winners:
        lines.append(_winner(results.winners[-1]))
    return "\n".join(lines)


def _winner(winner: Winner) -> str:
    """Which strategy is best, and how sure that is."""
    at = f"at {format_size(winner.length)}"
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
    useful = format_size(verdict.useful) if verdict.useful else "--"
    return [
        verdict.strategy,
        format_change(changes.get(("tax", _within(results)))),
        format_change(changes.get(("gain", verdict.safe))),
        format_change(changes.get(("gain", results.about["protocol"]["lengths"][-1]))),
        format_size(verdict.safe) + ("" if verdict.safe_decided else "?"),
        useful + ("" if verdict.useful_decided else "?"),
    ]


def _within(results: Results) -> int:
    """The longest length that the model was trained at; 0 if there is none."""
    trained, lengths = (
        results.about["model"]["trained_length"],
        results.about["protocol"]["lengths"],
    )
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
    """Three significant digits, and powers of ten where nobody reads digits any more."""
    rounded = float(f"{value:.2e}")
    if not math.isfinite(rounded) or rounded >= HUGE:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    digits = 2 - math.floor(math.log10(rounded))
    return f"{rounded:.{max(0, digits)}f}"
