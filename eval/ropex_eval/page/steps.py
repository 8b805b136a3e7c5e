"""The doublings of the context behind the verdicts."""

from __future__ import annotations

from collections.abc import Mapping

from ropex.sizes import format_size
from ropex_eval.contexts import HURTS
from ropex_eval.page.markup import Cell, Markup, Row, table, tag
from ropex_eval.page.verdicts import clusters
from ropex_eval.page.words import name, signed
from ropex_eval.results import Results, Step
from ropex_eval.statistics import student

STEPS = (
    f"A doubling hurts if its 95 % interval is above {HURTS} nats; it helps if the interval is "
    "below 0. Open: more text could show harm. No harm: neither. Within the trained length, none "
    "counts as hurting."
)


def steps(results: Results, chosen: Mapping[str, str]) -> Markup:
    """Every doubling behind the verdicts."""
    ends = sorted({(step.start, step.end) for each in results.verdicts for step in each.steps})
    header = ["strategy", *(f"{format_size(start)} → {format_size(end)}" for start, end in ends)]
    rows: list[Row] = []
    errors = student(max(2, clusters(results.about) or 30) - 1)
    for each in results.verdicts:
        known = {(step.start, step.end): step for step in each.steps}
        cells = [_step(known[pair], errors) if pair in known else "" for pair in ends]
        rows.append([name(each.strategy, chosen[each.strategy]), *cells])
    caption = "Change of the loss at each doubling, in nats a token, ± half of its 95 % interval"
    return table(caption, header, rows)


def _step(step: Step, errors: float) -> Cell:
    """A doubling, and which of four things it does; the words are there for who sees no colour."""
    margin = errors * (step.se or 0.0)
    if step.se is None:
        said, kind = "no interval", None
    elif not step.nll - margin <= HURTS:  # what is not a number hurts
        said, kind = "hurts", "worse"
    elif step.nll + margin < 0:
        said, kind = "helps", "better"
    elif step.nll + margin > HURTS:
        said, kind = "open", "open"
    else:
        said, kind = "no harm", None
    spread = "" if step.se is None else f" ± {margin:.3f}"
    return Cell(Markup(tag("b", signed(step.nll)) + tag("small", f"{spread} {said}")), kind)
