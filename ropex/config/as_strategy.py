"""The strategy that a rope entry stands for."""

from __future__ import annotations

from typing import Any

from ropex.config.entry import USUAL_BETAS, Entry
from ropex.config.values import KEYS, ORIGINAL, number
from ropex.strategies.attention_factors import yarn_temperature

# Keys that belong to the model, not to a strategy: which pairs rotate, and what it was trained at.
_OF_THE_MODEL = (
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "finetuned",
    ORIGINAL,
)  # fmt: skip
# What strategies call some of them.
_RENAMED = {"low_freq_factor": "alpha", "high_freq_factor": "beta"}


def strategy_of(entry: Entry, where: str) -> tuple[str, list[str]]:
    """The name and parameters of the strategy that an entry stands for.

    Args:
        entry: Of any notation.
        where: For messages.

    Raises:
        ValueError: There is no strategy for its type, or for a key of it.
    """
    _check(entry, where)
    if entry.kind == "default":
        base = entry.stated_base
        return ("theta", [f"base={_shown(base)}"]) if base else ("none", [])
    if entry.kind == "proportional":
        return "proportional", [f"p={_shown(entry.share)}"]
    raw = entry.raw
    if raw.get("factor") is None and entry.stretch:
        raw = {**raw, "factor": entry.stretch}
    if entry.kind == "yarn":
        raw = _yarn(raw, entry)
    if entry.kind == "longrope":
        raw = _longrope(raw)
    given = [(key, raw[key]) for key in KEYS[entry.kind] if raw.get(key) is not None]
    return entry.kind, [f"{_RENAMED.get(key, key)}={_shown(value)}" for key, value in given]


def _check(entry: Entry, where: str) -> None:
    """Raise a ValueError for a type that is not known or not sure, and for a key that is unread."""
    if entry.two_types:
        old, new = entry.raw["type"], entry.raw["rope_type"]
        raise ValueError(
            f"{where} says type is {_cut(old)} and rope_type {_cut(new)}; remove the wrong one"
        )
    if entry.kind not in KEYS:
        given = entry.raw.get("rope_type", entry.raw.get("type"))
        raise ValueError(f"{where} has the rope type {_cut(given)}; known: {', '.join(KEYS)}")
    keys = KEYS[entry.kind]
    for key, value in entry.raw.items():
        # an object is no parameter of any type, and transformers reads none
        unread = value is None or isinstance(value, dict)
        if not unread and key not in (*keys, *_OF_THE_MODEL):
            raise ValueError(
                f"{where} says {key} in an entry of the type {entry.kind}, which is not part of "
                f"it; it takes {', '.join(keys) or 'no keys'}"
            )


def _yarn(raw: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """With what transformers makes of 0 and null, and one way to say the temperature."""
    raw = {key: value for key, value in raw.items() if value or key not in USUAL_BETAS}
    if not isinstance(raw.get("truncate") or False, bool):
        raise ValueError(f"truncate is {_cut(raw['truncate'])}; it must be true or false")
    if "truncate" in raw:
        raw["truncate"] = entry.truncate
    relative, stated = raw.pop("attn_factor", None), raw.get("attention_factor")
    if relative is not None and stated is None:
        stated = raw["attention_factor"] = _times_usual(relative, raw.get("factor"))
    pair = raw.get("mscale") and raw.get("mscale_all_dim")
    ignored = () if pair and stated is None else ("mscale", "mscale_all_dim")
    return {key: value for key, value in raw.items() if key not in ignored}


def _times_usual(relative: Any, factor: Any) -> float:
    """What cos and sin are multiplied by where a file says it against YaRN's own, equation 22.

    SGLang and jquesnelle/yarn read `attn_factor` so; transformers does not know it.
    """
    if not (_sensible(relative) and _sensible(factor)):
        given = f"attn_factor is {str(relative)[:60]} and factor {str(factor)[:60]}"
        raise ValueError(f"{given}; give numbers above 0")
    return float(relative * yarn_temperature(factor))


def _longrope(raw: dict[str, Any]) -> dict[str, Any]:
    """With PhiMoE's two temperatures as one."""
    given = [raw.get(key) for key in ("short_mscale", "long_mscale")]
    if wrong := [each for each in given if each is not None and not _sensible(each)]:
        raise ValueError(f"an mscale is {_cut(wrong[0])}; it must be a number above 0")
    scales = set(given) - {None}
    if raw.get("attention_factor") is None and scales:
        if len(scales) > 1:
            raise ValueError("short_mscale and long_mscale differ, and a strategy has one of them")
        raw = {**raw, "attention_factor": scales.pop()}
    return {key: value for key, value in raw.items() if not key.endswith("_mscale")}


def _sensible(value: Any) -> bool:
    """Whether a value is a number above 0 that can be computed with."""
    return (number(value) or 0) > 0


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cut(value: Any) -> str:
    return repr(value)[:60]
