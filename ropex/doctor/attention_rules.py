"""Rules on what cos and sin are multiplied by, which engines read from different keys."""

from __future__ import annotations

from collections.abc import Iterator

from ropex.config.edits import Edit
from ropex.config.entry import Entry
from ropex.config.values import MAX, close, number, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries
from ropex.engines.facts import READERS, TRANSFORMERS
from ropex.strategies.attention_factors import (
    longrope_temperature,
    mscale_of,
    yarn_quotient,
    yarn_temperature,
)

_SAME = 1e-5  # the share by which an attention factor may be off


@on_entries
def _attn_factor(entry: Entry) -> Iterator[Problem]:
    """YaRN's attention factor is not under a name that transformers does not know."""
    value = positive(entry.raw, "attn_factor")
    if entry.kind != "yarn" or value is None:
        return
    usual = yarn_temperature(entry.factor or 1.0)
    stated = positive(entry.raw, "attention_factor")
    sure = stated is None or close(stated, value * usual, 1e-4)
    edits: tuple[Edit, ...] = ()
    if sure and not entry.part.latent and (keys := _everywhere(entry, stated or value * usual)):
        edits = (entry.remove("attn_factor"), *keys)
    yield Problem(
        entry.where,
        f"attn_factor {value:g} multiplies the usual attention factor {usual:g} in SGLang and in "
        "older vLLM; transformers does not know the key",
        edits,
        "write the final value as attention_factor, and remove attn_factor",
    )


@on_entries
def _yarn_attention(entry: Entry) -> Iterator[Problem]:
    """An unusual attention factor of YaRN is written in all keys that engines read."""
    wanted, factor = positive(entry.raw, "attention_factor"), entry.factor
    if entry.kind != "yarn" or not wanted or not factor or factor <= 1 or entry.part.latent:
        return
    if "attn_factor" in entry.raw or close(wanted, _elsewhere(entry, factor), _SAME):
        return
    yield Problem(
        entry.where,
        f"attention_factor is {wanted:g}; engines that do not read the key compute "
        f"{_elsewhere(entry, factor):g} from the others",
        _everywhere(entry, wanted),
        "write the factor that was meant; this one is too small for the other keys",
    )


def _elsewhere(entry: Entry, factor: float) -> float:
    """What engines compute that know the keys of DeepSeek, but not `attention_factor`."""
    own, shared = (number(entry.raw.get(key)) for key in ("mscale", "mscale_all_dim"))
    if own is None or shared is None:
        return yarn_temperature(factor)
    return yarn_quotient(factor, own, shared)


def _everywhere(entry: Entry, wanted: float) -> tuple[Edit, ...]:
    """The edits that say YaRN's attention factor in every dialect; none where one cannot.

    Measured: transformers, vLLM and SGLang then compute exactly this value.
    """
    factor = entry.factor or 1.0
    keys = {"attention_factor": wanted}
    if factor > 1:
        keys |= {"mscale": mscale_of(wanted, factor), "mscale_all_dim": 0.0}
        if not close(wanted, yarn_temperature(factor, keys["mscale"]), _SAME):
            return ()  # what is added to 1 has no digits left for so small a number
    return tuple(entry.set(key, to=value) for key, value in keys.items())


@on_entries
def _half_mscale(entry: Entry) -> Iterator[Problem]:
    """The two mscale keys come together."""
    if entry.kind != "yarn" or entry.raw.get("attention_factor") is not None:
        return
    keys = ("mscale", "mscale_all_dim")
    set_ = [key for key in keys if number(entry.raw.get(key))]  # 0 is unset to transformers
    if len(set_) != 1 or (set_ == ["mscale"] and number(entry.raw["mscale"]) == 1):
        return
    other = next(key for key in keys if key not in set_)
    yield Problem(
        entry.where,
        f"{set_[0]} is there without {other}: transformers then ignores it, other engines do not",
        advice=f"write {other} as well, or attention_factor, or remove {set_[0]}",
    )


@on_entries
def _longrope_attention(entry: Entry) -> Iterator[Problem]:
    """An unusual attention factor of longrope is written in all keys that engines read."""
    wanted = positive(entry.raw, "attention_factor")
    original, longest = entry.original, entry.longest
    if entry.kind != "longrope" or not wanted or not original or not longest:
        return
    usual = longrope_temperature(longest / original, original) if original > 1 else 1.0
    keys = ("short_mscale", "long_mscale")
    if close(wanted, usual, 1e-5) or all(entry.raw.get(key) is not None for key in keys):
        return
    yield Problem(
        entry.where,
        f"attention_factor is {wanted:g}; vLLM and SGLang read short_mscale and long_mscale, or "
        f"compute {usual:g} from {MAX}",
        tuple(entry.set(key, to=wanted) for key in keys),
    )


_DEAF = tuple(name for name, each in READERS.items() if "attention_factor" not in each.yarn)
_OTHER_NAME = tuple(name for name, each in READERS.items() if each.long_mscale)
ATTENTION_RULES = (
    Rule("attn-factor", "warning", (*TRANSFORMERS, "vllm", "mlx", "exllama"), _attn_factor),
    Rule("yarn-attention", "warning", _DEAF, _yarn_attention),
    Rule("half-mscale", "warning", (*TRANSFORMERS, "vllm", "sglang", "mlx"), _half_mscale),
    Rule("longrope-attention", "warning", _OTHER_NAME, _longrope_attention),
)
