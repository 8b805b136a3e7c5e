"""The verdict of a run in two or three sentences."""

from __future__ import annotations

import math

from ropex_eval.report.page.markup import Markup, tag
from ropex_eval.report.page.words import listed, perplexity, plural, short, size, times
from ropex_eval.report.terminal import decided
from ropex_eval.scores.results import Result, Results, unit


def headline(results: Results) -> Markup:
    """Which strategy is best at the longest length, how far it is safe, and what is open."""
    best = _lowest(results)
    parts = [_told(best, results), _reach(best.strategy, results)] if best else []
    said = " ".join(part for part in [*parts, _open(results)] if part)
    return tag("p", said or "This run has no verdicts.", class_="headline")


def _lowest(results: Results) -> Result | None:
    """The lowest perplexity at the longest length, of the same tokens if these were measured."""
    found = {row.definition for row in results.results}
    definition = next((each for each in ("fixed", "local", *sorted(found)) if each in found), "")
    known = [row for row in results.results if row.definition == definition]
    longest = max((row.length for row in known), default=0)
    at_end = [row for row in known if row.length == longest and math.isfinite(row.nll)]
    return min(at_end, key=lambda row: row.nll, default=None)


def _told(best: Result, results: Results) -> str:
    same = (best.definition, best.length)
    others = [r for r in results.results if (r.definition, r.length) == same and r is not best]
    plain = next((row for row in others if row.strategy == "none"), None)
    against = f" (none: {perplexity(plain.perplexity)})" if plain else ""
    what = f"{best.definition} perplexity"
    if not others:
        return (
            f"At {size(best.length)}, the {what} of {short(best.strategy)} is "
            f"{perplexity(best.perplexity)}."
        )
    lead = next((each for each in results.winners if each.length == best.length), None)
    chance = lead is not None and not (lead.high is not None and lead.high < 0)
    doubt = f", which may be chance: {short(lead.second)} is next" if lead and chance else ""
    return (
        f"At {size(best.length)}, {short(best.strategy)} has the lowest {what}: "
        f"{perplexity(best.perplexity)}{against}{doubt}."
    )


def _reach(strategy: str, results: Results) -> str:
    """How far a strategy is shown to be safe."""
    verdict = next((each for each in results.verdicts if each.strategy == strategy), None)
    if verdict is None or not verdict.finite:
        return ""
    trained = results.about.get("model", {}).get("trained_length")
    if verdict.safe is None:
        return "It is not shown to be safe at any length."
    far = f" ({times(verdict.safe, trained)})" if trained else ""
    return f"It is shown to be safe up to {size(verdict.safe)}{far}."


def _open(results: Results) -> str:
    lost = [each.strategy for each in results.verdicts if not each.finite]
    undecided = [each for each in results.verdicts if each.finite and not decided(each)]
    needed = max((each.clusters_needed or 0 for each in undecided), default=0)
    ask = f"; about {plural(needed, unit(results.about))} would decide" if needed else ""
    count = f"{len(undecided)} of {len(results.verdicts)} verdicts"
    parts = []
    if lost:
        parts.append(f"No verdict, as losses are NaN or infinite: {listed(lost)}.")
    if undecided:
        parts.append(f"Still open: {count if len(results.verdicts) > 1 else 'the verdict'}{ask}.")
    return " ".join(parts)
