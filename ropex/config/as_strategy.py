"""The strategy that a rope entry stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ropex.config.entry import Entry
from ropex.config.values import KEYS, ORIGINAL, number
from ropex.strategies.attention_factors import yarn_temperature


def strategy_of(entry: Entry, where: str) -> tuple[str, list[str]]:
    """The name and parameters of the strategy that an entry stands for.

    Args:
        entry: Of any notation.
        where: For messages.

    Raises:
        ValueError: There is no strategy for its type, or for a key of it.
    """
    if entry.two_types:
        old, new = entry.raw["type"], entry.raw["rope_type"]
        raise ValueError(
            f"{where} says type is {_cut(old)} and rope_type {_cut(new)}; remove the wrong one"
        )
    if entry.kind not in _READ:
        given = entry.raw.get("rope_type", entry.raw.get("type"))
        raise ValueError(f"{where} has the rope type {_cut(given)}; known: {', '.join(_READ)}")
    keys = KEYS[entry.kind]
    for key, value in entry.raw.items():
        # an object is no parameter of any type, and transformers reads none
        unread = value is None or isinstance(value, dict)
        if not unread and key not in (*keys, *_OF_THE_MODEL):
            raise ValueError(
                f"{where} says {key} in an entry of the type {entry.kind}, which is not part of "
                f"it; it takes {', '.join(keys) or 'no keys'}"
            )
    return _READ[entry.kind](entry)


def _cut(value: Any) -> str:
    return repr(str(value)[:60] if isinstance(value, str) else value)[:60]


def _some(entry: dict[str, Any], *names: str, **renamed: str) -> list[str]:
    """Parameters that an entry gives, under the names of the strategy."""
    pairs = [(name, name) for name in names] + list(renamed.items())
    return [
        f"{ours}={_shown(entry[theirs])}" for ours, theirs in pairs if entry.get(theirs) is not None
    ]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default(entry: Entry) -> tuple[str, list[str]]:
    base = entry.stated_base
    return ("theta", [f"base={_shown(base)}"]) if base else ("none", [])


def _by_factor(entry: Entry) -> tuple[str, list[str]]:
    return entry.kind, _some(entry.raw, "factor")


def _yarn(entry: Entry) -> tuple[str, list[str]]:
    raw = {key: value for key, value in _stretched(entry).items() if value or key not in _BETAS}
    if "truncate" in raw and raw["truncate"] is None:
        raw["truncate"] = entry.truncate
    if not isinstance(raw.get("truncate", True), bool):
        raise ValueError(f"truncate is {_cut(raw['truncate'])}; it must be true or false")
    given = _some(raw, "factor", *_BETAS, "truncate")
    if raw.get("attention_factor") is not None:
        return "yarn", [*given, *_some(raw, "attention_factor")]
    if (relative := raw.get("attn_factor")) is not None:
        return "yarn", [*given, f"attention_factor={_times_usual(relative, raw.get('factor'))}"]
    if raw.get("mscale") and raw.get("mscale_all_dim"):
        given += _some(raw, "mscale", "mscale_all_dim")
    return "yarn", given


def _stretched(entry: Entry) -> dict[str, Any]:
    """The entry with the factor that its lengths say, where it has none."""
    if entry.raw.get("factor") is None and entry.stretch:
        return {**entry.raw, "factor": entry.stretch}
    return entry.raw


def _times_usual(relative: Any, factor: Any) -> float:
    """What cos and sin are multiplied by where a file says it against YaRN's own, equation 22.

    SGLang and jquesnelle/yarn read `attn_factor` so; transformers does not know it.
    """
    if not (_sensible(relative) and _sensible(factor)):
        given = f"attn_factor is {str(relative)[:60]} and factor {str(factor)[:60]}"
        raise ValueError(f"{given}; give numbers above 0")
    return float(relative * yarn_temperature(factor))


def _sensible(value: Any) -> bool:
    """Whether a value is a number above 0 that can be computed with."""
    return (number(value) or 0) > 0


def _llama3(entry: Entry) -> tuple[str, list[str]]:
    return "llama3", _some(entry.raw, "factor", alpha="low_freq_factor", beta="high_freq_factor")


def _proportional(entry: Entry) -> tuple[str, list[str]]:
    return "proportional", [f"p={_shown(entry.share)}"]


def _longrope(entry: Entry) -> tuple[str, list[str]]:
    raw = _stretched(entry)
    given = [raw.get(key) for key in ("short_mscale", "long_mscale")]
    if wrong := [each for each in given if each is not None and not _sensible(each)]:
        raise ValueError(f"an mscale is {str(wrong[0])[:60]!r}; it must be a number above 0")
    scales = set(given) - {None}
    if raw.get("attention_factor") is None and scales:
        if len(scales) > 1:
            raise ValueError("short_mscale and long_mscale differ, and a strategy has one of them")
        raw = {**raw, "attention_factor": scales.pop()}
    return "longrope", _some(raw, "factor", "long_factor", "short_factor", "attention_factor")


# Keys that belong to the model, not to a strategy: which pairs rotate, and what it was trained at.
_OF_THE_MODEL = (
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "finetuned",
    ORIGINAL,
)  # fmt: skip
_BETAS = ("beta_fast", "beta_slow")
_READ: dict[str, Callable[[Entry], tuple[str, list[str]]]] = {
    "default": _default,
    "linear": _by_factor,
    "dynamic": _by_factor,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
}
