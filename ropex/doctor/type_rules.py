"""Rules on the parameters of one type: YaRN, Llama 3, LongRoPE."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ropex.config.entry import Entry
from ropex.config.values import MAX, close, number, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries
from ropex.engines.facts import ENGINES, TRANSFORMERS


@on_entries
def _swapped_betas(entry: Entry) -> Iterator[Problem]:
    """YaRN's beta_fast is above its beta_slow."""
    if entry.kind != "yarn":
        return
    fast, slow = entry.betas
    if fast < slow:
        both = {"beta_fast", "beta_slow"} <= entry.raw.keys()
        edits = (entry.set("beta_fast", slow), entry.set("beta_slow", fast)) if both else ()
        yield Problem(
            entry.where,
            f"beta_fast {fast:g} is below beta_slow {slow:g}: the ramp of YaRN runs backwards",
            edits,
            "write turns per trained length, more for beta_fast (usually 32 and 1)",
        )


@on_entries
def _no_ramp(entry: Entry) -> Iterator[Problem]:
    """YaRN's beta_fast is not its beta_slow."""
    fast, slow = entry.betas
    published = entry.part.latent or entry.part.remote  # Kimi K2 was trained with 1 and 1
    if entry.kind == "yarn" and fast == slow and not published:
        yield Problem(
            entry.where,
            f"beta_fast and beta_slow are both {fast:g}: YaRN then has no ramp, and steps from "
            "pairs that it keeps to pairs that it divides by the whole factor",
            advice="write turns per trained length, more for beta_fast (usually 32 and 1)",
        )


@on_entries
def _llama3_bands(entry: Entry) -> Iterator[Problem]:
    """A llama3 entry has both bounds of its ramp, in order."""
    if entry.kind != "llama3":
        return
    keys = ("low_freq_factor", "high_freq_factor")
    if absent := [key for key in keys if entry.raw.get(key) is None]:
        yield Problem(
            entry.where,
            f"the llama3 type lacks {' and '.join(absent)}: engines stop with an error",
            advice="write what the model was trained with (Llama 3.1: 1.0 and 4.0)",
        )
        return
    low, high = (positive(entry.raw, key) for key in keys)
    if low is not None and high is not None and low > high:
        yield Problem(
            entry.where,
            f"low_freq_factor {low:g} is above high_freq_factor {high:g}: they are swapped",
            (entry.set(keys[0], high), entry.set(keys[1], low)),
        )


@on_entries
def _longrope_lists(entry: Entry) -> Iterator[Problem]:
    """The lists of a longrope entry have one number above 0 for each rotated pair."""
    if entry.kind != "longrope":
        return
    wanted = entry.pairs
    lists = [(key, entry.raw.get(key)) for key in ("short_factor", "long_factor")]
    for key, value in lists:
        if not isinstance(value, list) or not all((number(each) or 0) > 0 for each in value):
            wrong = "is missing" if value is None else "is no list of numbers above 0"
        elif wanted is not None and len(value) != wanted:
            wrong = f"has {len(value)} numbers, and the model rotates {wanted} pairs"
        else:
            continue
        yield Problem(
            entry.where,
            f"{key} {wrong}: engines stop with an error",
            advice="copy the lists from the model that the config is of",
        )
    sizes = {len(value) for _, value in lists if isinstance(value, list)}
    if wanted is None and len(sizes) > 1:
        yield Problem(
            entry.where,
            "short_factor and long_factor differ in length: engines stop with an error",
            advice="copy the lists from the model that the config is of",
        )


@on_entries
def _swapped_lists(entry: Entry) -> Iterator[Problem]:
    """The long list of a longrope entry divides by more than the short one."""
    lists = [entry.raw.get(key) for key in ("short_factor", "long_factor")]
    if entry.kind != "longrope" or not all(isinstance(each, list) for each in lists):
        return
    short, long = ([number(value) for value in each or ()] for each in lists)
    if len(short) == len(long) and _total(long) < _total(short):
        yield Problem(
            entry.where,
            "short_factor divides frequencies by more than long_factor, which is for longer texts:"
            " they are swapped",
            (entry.set("short_factor", lists[1]), entry.set("long_factor", lists[0])),
        )


@on_entries
def _idle_lists(entry: Entry) -> Iterator[Problem]:
    """The lists of a longrope entry divide, where the model reaches further."""
    original, longest = entry.original, entry.longest
    further = (original and longest and longest > original) or (entry.factor or 1) > 1
    if entry.kind != "longrope" or not further or entry.part.remote:
        return
    lists = [entry.raw.get(key) for key in ("short_factor", "long_factor")]
    divisors = [each for found in lists for each in (found if isinstance(found, list) else [0])]
    if all(number(each) == 1 for each in divisors):
        yield Problem(
            entry.where,
            "short_factor and long_factor are all ones, so nothing is scaled",
            advice="copy the lists from the model that the config is of",
        )


def _total(divisors: list[float | None]) -> float:
    """Their sum; NaN, which compares as neither more nor less, unless all are above 0."""
    found = [each for each in divisors if each is not None and each > 0]
    return sum(found) if len(found) == len(divisors) else math.nan


@on_entries
def _longrope_factor(entry: Entry) -> Iterator[Problem]:
    """A longrope entry's factor is max over original, or its attention factor is stated."""
    factor, original, longest = entry.factor, entry.original, entry.longest
    if entry.kind != "longrope" or not (factor and original and longest):
        return
    if entry.raw.get("attention_factor") is None and not close(factor, longest / original, 0.01):
        yield Problem(
            entry.where,
            f"factor is {factor:g}, and {MAX} over the original length is {longest / original:g}: "
            "transformers 5 takes the former for the attention factor, 4 the latter",
            advice="correct the factor or the lengths",
        )


TYPE_RULES = (
    Rule("swapped-betas", "error", ENGINES, _swapped_betas),
    Rule("no-ramp", "warning", ENGINES, _no_ramp),
    Rule("llama3-bands", "error", ENGINES, _llama3_bands),
    Rule("longrope-lists", "error", ENGINES, _longrope_lists),
    Rule("swapped-lists", "error", ENGINES, _swapped_lists),
    Rule("idle-lists", "error", ENGINES, _idle_lists),
    Rule("longrope-factor", "warning", TRANSFORMERS, _longrope_factor),
)
