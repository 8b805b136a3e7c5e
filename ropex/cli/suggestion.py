"""What `ropex suggest` says, as text."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from ropex.cli.common import count
from ropex.sizes import format_size

SOURCES = {
    "critical": "arXiv:2310.05209, section 4",
    "factor": "arXiv:2306.15595, section 2; arXiv:2310.05209, section 4",
    "base": "arXiv:2405.14591, theorem 1", "phase": "defined in ropex.advice.bounds.phase_change",
    "logits": "arXiv:2309.00071, section 3.4",
}  # fmt: skip


def render(about: dict[str, Any]) -> str:
    """The advice that `ropex suggest --json` prints, for a person."""
    if about["rotates_within"]:
        return "\n\n".join([_head(about), _needs_none(about), "  " + about["next"][0]])
    parts = [_head(about), _theory(about), _candidates(about), _engines(about)]
    steps = "\n".join(f"  {command}" for command in about["next"])
    parts.append(
        f"Closed form shows risk and cost, not gain: measure, then keep what holds.\n{steps}"
    )
    return "\n\n".join(parts)


def _head(about: dict[str, Any]) -> str:
    trained, length = map(format_size, (about["trained_length"], about["length"]))
    return (
        f"{about['model']}: {about['model_type']}, trained at {trained} tokens, to read {length}; "
        f"rope_theta {about['rope_theta']:g}, {count(about['rotary_dim'] // 2, 'rotated pair')}"
    )


def _needs_none(about: dict[str, Any]) -> str:
    """Why no strategy is suggested."""
    return _wrapped(
        "no scaling is needed: every layer that rotates sees only the last "
        f"{format_size(about['rotates_within'])} tokens, within the trained length, so no distance "
        "is new to it at any length. What limits the model are its layers without rotation, which "
        "see the whole text and which no strategy reaches: measure how far they hold."
    )


def _theory(about: dict[str, Any]) -> str:
    lines = [
        f"critical dimension: {_of_turns(about)} ({SOURCES['critical']})",
        f"smallest factor: {about['smallest_factor']:.4g}. Pairs that made no full turn keep to "
        "the angles that they have seen if they are slowed by length over trained length; the "
        f"others need not be. ({SOURCES['factor']})",
        f"smallest base: {_of_base(about)} ({SOURCES['base']})",
    ]
    if about["own_scaling"]:
        lines.append(
            f"own scaling: the checkpoint is scaled already ({about['own_scaling']}); what follows "
            "comes on top of it."
        )
    if about["switches_at"]:
        lines.append(
            f"own switch: beyond {format_size(about['switches_at'])} tokens the checkpoint takes "
            "its other list. Strategies that go by the length keep both lists within the trained "
            "length; the others start from the one at that length, for sequences of all lengths."
        )
    if about["sliding_window"]:
        lines.append(
            f"sliding window: attention sees the last {format_size(about['sliding_window'])} "
            "tokens only, whatever the rotary embedding does, unless it is lifted."
        )
    return "\n".join(map(_wrapped, lines))


def _of_turns(about: dict[str, Any]) -> str:
    turned, pairs = about["critical_dimension"] // 2, about["rotary_dim"] // 2
    share = f"{about['critical_dimension']} of {about['rotary_dim']}."
    if turned == pairs:
        return f"{share} Every pair made a full turn in training, so no angle is new."
    return (
        f"{share} {turned} of {count(pairs, 'pair')} made a full turn in training and have seen "
        f"every angle; at {format_size(about['length'])}, unscaled, {about['outside_unscaled']} "
        "would see new ones."
    )


def _of_base(about: dict[str, Any]) -> str:
    from ropex.advice.bounds import LONGEST_SEARCH

    length, found, fit = format_size(about["length"]), about["base_bound"], about["base_bound_fit"]
    rule = "the sum of cos(m theta_i) is then at least 0 at all distances m below the length"
    published = f"{fit:.3g} by the published fit 0.0424 L^1.628"
    if found is None:
        longest = format_size(LONGEST_SEARCH)
        why = (
            f"searched for up to {longest}"
            if about["length"] > LONGEST_SEARCH
            else "none by search"
        )
        return f"{published} for {length} ({why}): {rule}."
    below = "above" if about["rope_theta"] >= found else "below"
    return (
        f"{found:.3g} for {length} by search, {published}: {rule}. The model's "
        f"{about['rope_theta']:g} is {below} it. It binds a model that is trained on, with "
        f"theta:{_rounded_up(found)}."
    )


def _rounded_up(value: float) -> int:
    """The next number of two digits and zeros, which a person would write."""
    unit = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return math.ceil(value / unit) * unit


def _candidates(about: dict[str, Any]) -> str:
    from ropex.advice.candidates import ORDER
    from ropex_eval.report.terminal import align

    pairs = about["rotary_dim"] // 2
    rows = [["strategy", "inside", "untrained", "phase", "logits", "engines"]]
    rows += [
        [
            each["strategy"],
            f"{pairs - each['pairs_outside']}/{pairs}",
            "yes" if each["untrained_results"] else "-",
            f"{each['phase_change']:.2f}",
            f"x {each['logit_factor']:.2f}",
            f"{list(each['engines'].values()).count('yes')}/{len(each['engines'])}",
        ]
        for each in about["candidates"]
    ]
    legend = [
        f"Ranked by: {ORDER}. Factors are the smallest that suffice, to 1 %.",
        f"inside: pairs that see trained angles only, at {format_size(about['length'])}.",
        "untrained: results without further training are published (--json says where).",
        "phase: radians by which the pair that changes most turns over 64 tokens, at the trained "
        f"length ({SOURCES['phase']}).",
        f"logits: what attention logits are multiplied by there ({SOURCES['logits']}).",
        "engines: how many compute it exactly from what `ropex patch` writes.",
    ]
    legend += [f"left out: {name}: {why}." for name, why in about["left_out"].items()]
    return align(rows) + "\n\n" + "\n".join(map(_wrapped, legend))


def _engines(about: dict[str, Any]) -> str:
    """What engines make of the strategies, those together that they treat alike."""
    from ropex.engines.answer import VERDICTS

    alike: dict[str, list[str]] = {}
    for each in about["candidates"]:
        alike.setdefault(_grouped(each["engines"]), []).append(each["strategy"])
    lines = [f"Engines. {'; '.join(f'{word}: {said}' for word, said in VERDICTS.items())}."]
    lines += [f"{', '.join(members)}. {said}." for said, members in alike.items()]
    return "\n".join(map(_wrapped, [*lines, f"Sources. {_grouped(about['engine_sources'])}."]))


def _grouped(said: dict[str, str]) -> str:
    """What is said of engines, once for all of which it is said."""
    names: dict[str, list[str]] = {}
    for engine, text in said.items():
        names.setdefault(text, []).append(engine)
    return "; ".join(f"{', '.join(engines)}: {text}" for text, engines in names.items())


def _wrapped(text: str) -> str:
    return textwrap.fill(
        text, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
