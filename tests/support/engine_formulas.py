"""What each engine computes of an entry, in float64, written from what is known of it.

Not from ropex: number by number, so that a mistake would have to be made twice.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from typing import Any

from ropex.engines import Export
from tests.support.models import TRAINED

Config = dict[str, Any]
Table = tuple[list[float], float]
"""Frequencies, and what cos and sin are multiplied by."""

PAIRS, BASE = 8, 1e4


def unscaled(base: float) -> list[float]:
    return [base ** (-i / PAIRS) for i in range(PAIRS)]


def linear(entry: Config) -> list[float]:
    return [f / entry["factor"] for f in unscaled(entry["rope_theta"])]


def llama3(entry: Config) -> list[float]:
    low, high = entry["low_freq_factor"], entry["high_freq_factor"]
    found = []
    for f in unscaled(entry["rope_theta"]):
        turns = entry["original_max_position_embeddings"] * f / (2 * math.pi)
        if turns < low:
            found.append(f / entry["factor"])
        elif turns > high:
            found.append(f)
        else:
            share = (turns - low) / (high - low)
            found.append((1 - share) * f / entry["factor"] + share * f)
    return found


def bounds(entry: Config, original: float, rounds: bool) -> tuple[float, float]:
    def pair(turns: float) -> float:
        inside = math.log(original / (turns * 2 * math.pi))
        return 2 * PAIRS * inside / (2 * math.log(entry["rope_theta"]))

    low, high = pair(entry["beta_fast"]), pair(entry["beta_slow"])
    if rounds:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, 2 * PAIRS - 1)


def yarn(entry: Config, factor: float, rounds: bool) -> list[float]:
    low, high = bounds(entry, entry["original_max_position_embeddings"], rounds)
    high += 0.001 * (low == high)
    found = []
    for i, f in enumerate(unscaled(entry["rope_theta"])):
        ramp = min(1.0, max(0.0, (i - low) / (high - low)))
        found.append(f / factor * ramp + f * (1 - ramp))
    return found


def mscale(factor: float, m: float = 1.0) -> float:
    return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0


def listed(entry: Config, name: str) -> list[float]:
    return [f / by for f, by in zip(unscaled(entry["rope_theta"]), entry[name], strict=True)]


def root(entry: Config, length: int) -> float:
    original = entry["original_max_position_embeddings"]
    if length <= original:
        return 1.0
    return math.sqrt(1 + math.log(length / original) / math.log(original))


def common(entry: Config) -> Table | None:
    """Types that all engines read alike."""
    kind = entry["rope_type"]
    simple: dict[str, Callable[[Config], list[float]]] = {
        "default": lambda each: unscaled(each["rope_theta"]),
        "llama3": llama3,
    }
    return (simple[kind](entry), 1.0) if kind in simple else None


def classes(config: Config, tokens: int, length: int, *, by_batch: bool) -> Table:
    """The shared parts of vLLM's and SGLang's rotary classes."""
    entry, limit = config["rope_parameters"], config["max_position_embeddings"]
    if entry["rope_type"] == "linear":
        assert isinstance(entry["factor"], float)  # an integer fails there
        assert limit == TRAINED  # they multiply it
        return linear(entry), 1.0
    assert entry["rope_type"] == "longrope"
    original = entry["original_max_position_embeddings"]
    assert config["original_max_position_embeddings"] == original
    long = (tokens if by_batch else length) > original
    scale = entry.get("long_mscale" if long else "short_mscale")
    table = listed(entry, "long_factor" if long else "short_factor")
    return table, root(entry, limit) if scale is None else scale


def vllm(config: Config, tokens: int, length: int) -> Table:
    entry = config["rope_parameters"]
    if entry["rope_type"] == "yarn":
        scale = entry.get("attention_factor", mscale(entry["factor"]))
        return yarn(entry, entry["factor"], entry.get("truncate", True)), scale
    return common(entry) or classes(config, tokens, length, by_batch=False)


def sglang(config: Config, tokens: int, length: int) -> Table:
    entry = config["rope_parameters"]
    if entry["rope_type"] != "yarn":
        return common(entry) or classes(config, tokens, length, by_batch=True)
    factor = entry["factor"]
    scale = mscale(factor) * entry.get("attn_factor", 1.0)
    if "mscale" in entry:
        scale = mscale(factor, entry["mscale"]) / mscale(factor, entry["mscale_all_dim"])
    return yarn(entry, factor, entry.get("truncate", True)), scale


def mlx(config: Config, tokens: int, length: int) -> Table:
    entry = {
        "rope_type": "default",
        **(config["rope_scaling"] or {}),
        "rope_theta": config["rope_theta"],
    }
    if entry["rope_type"] == "linear":
        return linear(entry), 1.0
    if entry["rope_type"] == "yarn":
        over = mscale(entry["factor"], entry.get("mscale_all_dim", 0))
        scale = mscale(entry["factor"], entry.get("mscale", 1)) / over
        return yarn(entry, entry["factor"], True), scale
    if entry["rope_type"] == "longrope":
        return listed(entry, "long_factor"), root(entry, config["max_position_embeddings"])
    found = common(entry)
    assert found is not None
    return found


def tensorrt(config: Config, tokens: int, length: int) -> Table:
    entry = config["rope_parameters"]
    if entry["rope_type"] == "longrope":
        assert entry["long_factor"] == entry["short_factor"]  # else by position
    return mlx(config, tokens, length)


def exllamav3(config: Config, tokens: int, length: int) -> Table:
    entry, limit = config["rope_parameters"], config["max_position_embeddings"]
    if entry["rope_type"] == "linear":
        return linear(entry), 1.0
    if entry["rope_type"] == "yarn":
        factor = limit / entry["original_max_position_embeddings"]
        scale = entry.get("attention_factor", mscale(factor))
        return yarn(entry, factor, entry.get("truncate", True)), scale
    if entry["rope_type"] == "longrope":
        long = limit > entry["original_max_position_embeddings"]
        return listed(entry, "long_factor" if long else "short_factor"), root(entry, limit)
    found = common(entry)
    assert found is not None
    return found


def exllamav2(config: Config, tokens: int, length: int) -> Table:
    scaling = config["rope_scaling"] or {}
    entry = {**scaling, "rope_theta": config["rope_theta"]}
    if scaling.get("type") == "longrope":
        assert config["original_max_position_embeddings"]  # it reads it there
        return exllamav3(config, tokens, length)
    if scaling.get("type") == "linear":
        return linear(entry), 1.0
    if scaling.get("rope_type") == "llama3":
        return llama3(entry), 1.0
    return unscaled(config["rope_theta"]), 1.0


def llama_cpp(found: Export) -> Table:
    """From the flags; and the metadata, with the tensors, must say the same."""
    assert found.metadata is not None
    keys = {key.removeprefix("llama."): value for key, value in found.metadata.items()}
    divisors = (found.tensors or {}).get("rope_freqs.weight", [1.0] * PAIRS)
    kind, factor = keys.get("rope.scaling.type"), keys.get("rope.scaling.factor", 1.0)
    # Its loader reads rope.scaling.yarn_beta_fast and yarn_beta_slow for Mistral 3 and Grok alone.
    entry = {"rope_theta": keys["rope.freq_base"], "beta_fast": 32.0, "beta_slow": 1.0}
    flags = flags_of(found)
    if not found.tensors:
        assert float(flags.get("--rope-freq-base", BASE)) == entry["rope_theta"]
        assert flags.get("--rope-scaling", "none") == kind
        assert float(flags.get("--rope-scale", 1)) == factor
        assert not [name for name in flags if "beta" in name]
        attention = keys.get("rope.scaling.attn_factor")
        assert flags.get("llama.rope.scaling.attn_factor") == (attention and f"float:{attention!r}")
    slower = 1 / factor if kind in ("linear", "yarn") else 1.0
    low, high = 0.0, 0.0
    if kind == "yarn":
        before = keys["rope.scaling.original_context_length"]
        assert flags["--yarn-orig-ctx"] == str(before)
        low, high = bounds(entry, before, True)
    table = []
    for i, (f, by) in enumerate(zip(unscaled(entry["rope_theta"]), divisors, strict=True)):
        ramp = 1 - min(1.0, max(0.0, (i - low) / max(0.001, high - low)))
        mix = ramp if kind == "yarn" else 0.0
        table.append(slower * f / by * (1 - mix) + f / by * mix)
    scale = keys.get("rope.scaling.attn_factor", 1.0)
    return table, scale * (mscale(factor) if kind == "yarn" else 1.0)


def flags_of(found: Export) -> dict[str, str]:
    """Flags as a shell hands them on; those of `--override-kv` by the key that they set."""
    words = shlex.split(found.flag_text)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    flags = {name: value for name, value in pairs if name != "--override-kv"}
    return flags | dict(value.split("=") for name, value in pairs if name == "--override-kv")
