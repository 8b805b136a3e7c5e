"""The verdict of a run in two or three sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ropex_eval.page.markup import Markup, tag
from ropex_eval.page.words import perplexity, plural, short, size, times
from ropex_eval.results import Result, Results, Verdict


def headline(results: Results) -> Markup:
    """Which strategy reads best at the longest length, how far it is safe, and what is open."""
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
    at_end = [row for row in known if row.length == longest and not math.isnan(row.nll)]
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
    """How far a strategy is safe; one that is bad everywhere is safe too, so only of the best."""
    verdict = next((each for each in results.verdicts if each.strategy == strategy), None)
    if verdict is None:
        return ""
    trained = results.about.get("model", {}).get("trained_length")
    far = f" ({times(verdict.safe, trained)})" if trained else ""
    sure = "" if verdict.safe_decided else ", as far as one can tell"
    return f"It is safe up to {size(verdict.safe)}{far}{sure}."


def _open(results: Results) -> str:
    undecided = [each for each in results.verdicts if not decided(each)]
    if not undecided:
        return ""
    needed = max((each.clusters_needed or 0 for each in undecided), default=0)
    noun = unit(results.about)
    ask = f"; about {plural(needed, noun)} would decide" if needed else ""
    count = f"{len(undecided)} of {len(results.verdicts)} verdicts"
    return f"Still open: {count if len(results.verdicts) > 1 else 'the verdict'}{ask}."


def decided(verdict: Verdict) -> bool:
    """Whether more text could change nothing."""
    return verdict.safe_decided and verdict.useful_decided


def unit(about: Mapping[str, Any]) -> str:
    """What intervals are clustered by."""
    return str(about.get("data", {}).get("clusters", "documents"))
