"""The tests behind the verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from ropex.sizes import format_size
from ropex_eval.report.page.markup import Cell, Markup, Row, join, table, tag
from ropex_eval.report.page.words import name, signed
from ropex_eval.report.terminal import format_share
from ropex_eval.scores.contexts import COLLAPSE, MARGIN
from ropex_eval.scores.results import Results
from ropex_eval.scores.verdict import OPEN, SHOWN, WORSE, Step

STEPS = (
    f"Shown: the bounds say below {MARGIN} nats, and fewer than one document in ten collapses "
    f"(loses more than {COLLAPSE}). Worse: the bounds are above the margin, or more than one in "
    "ten is shown to collapse. Open: neither is shown. A verdict ends at the first length that is "
    "not shown."
)
_KINDS = {SHOWN: "better", WORSE: "worse", OPEN: "open"}


def steps(results: Results, chosen: Mapping[str, str]) -> Markup:
    """Every test behind the verdicts."""
    ends = sorted({(step.start, step.end) for each in results.verdicts for step in each.steps})
    titles = (f"{format_size(end)} against {format_size(start)}" for start, end in ends)
    rows: list[Row] = []
    for each in results.verdicts:
        known = {(step.start, step.end): step for step in each.steps}
        cells = [_step(known[pair]) if pair in known else "" for pair in ends]
        rows.append([name(each.strategy, chosen[each.strategy]), *cells])
    caption = (
        "Change of the loss against no scaling at the trained length, in nats a token, with what "
        "it is above and below at 95 % each"
    )
    return table(caption, ["strategy", *titles], rows)


def _step(step: Step) -> Cell:
    """A test, and what it shows; in words too, for readers who do not see the colours."""
    said = [step.outcome]
    if step.low is not None and step.high is not None:
        said.insert(0, f"{signed(step.low)} to {signed(step.high)}")
    if step.hurt is not None:
        said += [f"hurt {format_share(step.hurt)}", f"collapsed {format_share(step.collapsed)}"]
    lines = [tag("b", signed(step.nll)), *(tag("small", each) for each in said)]
    return Cell(join(lines), _KINDS[step.outcome])
