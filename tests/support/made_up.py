"""Results that no model has given, for the tests of what is made of results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ropex_eval.report.page import Difference
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Change, Point, Result, Results, Retrieval
from ropex_eval.scores.verdict import Step, Verdict

TRAINED = 4096
EXPLANATIONS = {
    "local": "perplexity of the last 64 of the first L tokens of each excerpt",
    "fixed": "perplexity of the same 64 tokens, read after ever more text before them",
    "prefix": "perplexity of all of the first L tokens of each excerpt",
    "passkey": "a number of five digits, told once in a long filler and asked for at the end",
    "copy": "random tokens, once more: the share that is continued as before",
}
SIX = ("none", "dynamic", "linear:8", "ntk:8", "llama3:8", "yarn:8")
TWELVE = (*SIX, "yarn:8+logn", "mrrope:8", "ntk_by_parts:8", "theta:base=500000",
          "giraffe_power:0.1", "yarn:factor=8,beta_fast=16,beta_slow=2")  # fmt: skip
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>",
    "\"' onmouseover=window.hacked=3 ${window.hacked = 4} <!--<style>*{color:red}</style> & $title",
)
DEFINITIONS = ("prefix", "local", "fixed")
EMPTY = Results({"model": {}, "data": {}}, Protocol((), 1, (), None, 0))


def made_up(
    texts: Sequence[str] = SIX, lengths: Sequence[int] = LENGTHS,
    definitions: Sequence[str] = DEFINITIONS, intervals: bool = True, retrieval: bool = True,
) -> Results:  # fmt: skip
    """A run of some strategies: one that collapses, some that hold."""
    holds = {text: 2.0 ** (2 + place % 4) if place else 1.0 for place, text in enumerate(texts)}

    def nll(text: str, definition: str, length: int) -> float:
        easy = {"local": 0.25, "fixed": 0.18, "prefix": 0.1}.get(definition, 0.12)
        place = texts.index(text)
        tax = 0.02 * place * (1 + 0.05 * math.sin(place + length))
        beyond = max(0.0, math.log2(length / (holds[text] * TRAINED)))
        wiggle = 0.02 * math.sin(3 * math.log2(length)) if definition == "local" else 0.0
        gained = easy * math.log2(lengths[0] / length) / 3
        return 2.1 + gained + tax + wiggle + (3 - 0.3 * place / 4) * math.pow(beyond, 0.8)

    def error(length: int) -> float | None:
        return 0.015 + 0.004 * math.log2(length / lengths[0]) if intervals else None

    results = []
    for text in texts:
        for name in definitions:
            for length in lengths:
                mean, se = nll(text, name, length), error(length)
                low, high = (None, None) if se is None else (mean - 2 * se, mean + 2 * se)
                results.append(
                    Result(text, name, length, mean, math.exp(mean), se,
                           None if low is None else math.exp(low),
                           None if high is None else math.exp(high), 1024)
                )  # fmt: skip
    return Results(
        about=_about(texts, lengths),
        protocol=Protocol(tuple(lengths), 64, tuple(definitions), None, lengths[-1]),
        strategies={text: _known(place) for place, text in enumerate(texts)},
        results=tuple(results),
        changes=tuple(_changes(texts, lengths, nll, intervals)),
        verdicts=tuple(_verdict(text, texts[0], lengths, nll, intervals) for text in texts),
        curve=tuple(_curve(texts, lengths[-1], nll, error)),
        retrieval=tuple(_retrieval(texts, lengths, holds)) if retrieval else (),
    )


def _about(texts: Sequence[str], lengths: Sequence[int]) -> dict[str, Any]:
    said = " ".join(f"-s {text}" for text in texts)
    return {
        "model": {
            "id": "meta-llama/Llama-2-7b-hf", "type": "llama", "sha256": "9c1e" * 16,
            "dtype": "bfloat16", "device": "cuda:0", "attention": "sdpa", "trained_length": TRAINED,
            "rope_theta": 10000.0, "rotary_dim": 128, "sliding_window_lifted": False,
        },
        "data": {
            "source": "pg19-test", "documents": [f"book-{n}.txt" for n in range(12)],
            "too_short": 3, "excerpts": 16, "tokens": lengths[-1], "bos": 1,
            "tokens_sha256": "ab12" * 16, "clusters": "documents",
        },
        "versions": {"ropex": "0.3.0", "transformers": "5.23.0", "torch": "2.13.0"},
        "command": f"ropex eval meta-llama/Llama-2-7b-hf {said} --lengths 512..32k --data pg19",
        "warnings": ["3 documents are shorter than 32k tokens and were left out"],
    }  # fmt: skip


def _known(place: int) -> dict[str, Any]:
    pairs = [2 * math.pi * 10000 ** (pair / 64) * (1 + place * pair / 64) for pair in range(64)]
    stopped = 8 if place == 2 else 0
    return {
        "length_class": "per_length" if place == 1 else "static",
        "attention_scale": 1.0 + 0.05 * place,
        "inv_freq_sha256": f"{place:02x}" * 32,
        "wavelengths": [*pairs[: 64 - stopped], *([None] * stopped)],
    }


def _changes(texts: Sequence[str], lengths: Sequence[int], nll: Any, intervals: bool) -> Any:
    within = [length for length in lengths if length <= TRAINED] or [lengths[0]]
    for text in texts:
        for name in ("local", "fixed"):
            for length in lengths:
                against = min(length, within[-1])
                kind = "tax" if length == against else "gain"
                if (text == "none" and kind == "tax") or (kind == "gain" and name == "local"):
                    continue
                change = nll(text, name, length) - nll(texts[0], name, against)
                se = 0.006 if intervals else None
                low, high = (change - 0.012, change + 0.012) if intervals else (None, None)
                hurt = min(1.0, max(0.0, change))
                yield Change(text, kind, name, length, against, change, se, low, high, hurt)


def _verdict(text: str, plain: str, lengths: Sequence[int], nll: Any, intervals: bool) -> Verdict:
    within = [length for length in lengths if length <= TRAINED] or [lengths[0]]
    against, steps, safe, useful = within[-1], [], None, None
    for end in (length for length in lengths if length >= against):
        change = nll(text, "fixed", end) - nll(plain, "fixed", against)
        low, high = (change - 0.018, change + 0.018) if intervals else (None, None)
        outcome = "shown" if change < 0.03 else "worse" if change > 0.07 else "open"
        se, hurt = 0.009 if intervals else None, min(1.0, max(0.0, change))
        steps.append(Step(against, end, change, se, low, high, hurt, hurt / 2, outcome))
    for step in steps:
        if step.outcome != "shown":
            break
        safe = step.end
        useful = step.end if step.nll < -0.018 else useful
    open_ = not intervals or len(text) % 3 == 0
    wanted = 40 if open_ and intervals else None
    return Verdict(text, safe, not open_, useful, not open_, wanted, tuple(steps))


def _curve(texts: Sequence[str], longest: int, nll: Any, error: Any) -> Any:
    for text in texts:
        start = 1
        while start < longest:
            end = min(longest, max(start + 8, math.ceil(start * 2**0.25)))
            mean = nll(text, "local", end) + 0.6 / math.sqrt(end)
            yield Point(text, start, end, mean, error(max(end, 512)))
            start = end


def _retrieval(texts: Sequence[str], lengths: Sequence[int], holds: dict[str, float]) -> Any:
    for text in texts:
        for length in lengths[-5:]:
            gone = max(0.0, math.log2(length / (holds[text] * TRAINED)))
            for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
                found = max(0.0, min(1.0, 1 - 0.5 * gone * (1.2 - depth)))
                low, high = max(0.0, found - 0.15), min(1.0, found + 0.1)
                yield Retrieval(text, "passkey", length, depth, found, low, high,
                                -0.02 - 1.5 * gone, 3.0 * gone, 20)  # fmt: skip
            copied = max(0.0, 1 - 0.3 * gone)
            yield Retrieval(text, "copy", length, None, copied, max(0.0, copied - 0.1),
                            min(1.0, copied + 0.05), -0.1 - gone, gone, 64)  # fmt: skip


def ruined() -> Results:
    """A run in which one strategy reaches infinity, and another is not a number."""
    results = made_up()

    def worse(row: Result) -> Result:
        at_end = LENGTHS.index(row.length) - LENGTHS.index(8192)
        if row.strategy == "linear:8" and at_end >= 0:
            value = (4e6, math.inf, math.inf)[at_end]
        elif row.strategy == "ntk:8" and at_end >= 1:
            value = math.nan
        else:
            return row
        return replace(row, nll=math.log(value), perplexity=value, se=None, low=None, high=None)

    return replace(results, results=tuple(worse(row) for row in results.results))


def hostile(one: str, other: str) -> Results:
    """A run in which nothing is called what it should be."""
    tame = made_up(("one", "other"))
    return Results(
        about=_renamed(tame.about, one, other),
        protocol=tame.protocol,
        strategies=dict(zip((one, other), tame.strategies.values(), strict=True)),
        **{
            part: tuple(
                replace(row, **{
                    key: other if key == "task" or row.strategy == "other" else one
                    for key in ("strategy", "task") if hasattr(row, key)
                })
                for row in getattr(tame, part)
            )
            for part in ("results", "changes", "verdicts", "curve", "retrieval")
        },
    )  # fmt: skip


def _renamed(value: Any, one: str, other: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each, one, other) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, one, other) for each in value]
    return (other if len(value) % 2 else one) if isinstance(value, str) else value


def paired(left: Results, right: Results) -> list[Difference]:
    """What the runs have in common: better at the end, worse at the beginning."""
    both = set(left.strategies) & set(right.strategies)
    return [
        Difference(
            row.strategy, row.definition, row.length, change, 0.01, change - 0.02, change + 0.02
        )
        for row in right.results
        if row.strategy in both
        for change in [0.05 - 0.01 * math.log2(row.length / 512)]
    ]
