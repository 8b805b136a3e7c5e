"""How each engine reads a rope entry: in what it differs from transformers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ropex.config import numbers as formulas
from ropex.engines.encodings import Encoding
from ropex.engines.wanted import Wanted

Entry: TypeAlias = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Reading:
    """What an engine computes of a config.

    Attributes:
        inv_freq: For a text of the target length, `(dim // 2,)`, float64.
        short: For one within the trained length.
        attention_scale: What cos and sin are multiplied by.
    """

    inv_freq: Tensor
    short: Tensor
    attention_scale: float


@dataclass(frozen=True)
class Engine:
    """An engine that reads config.json, or an override of it.

    Attributes:
        name: As `ropex export --for` takes it.
        title: What people call it.
        source: Where what stands here comes from.
        yarn_scale: The temperature of a `yarn` entry.
        list_scale: That of a `longrope` entry, from it and `max_position_embeddings`.
        refuses: What it makes of a type that it does not compute, in words.
        rounds: Whether the ramp of YaRN is rounded to whole pairs whatever `truncate` says.
        interpolates: The factor of a `yarn` entry, from it and `max_position_embeddings`.
        long_always: Whether it takes the long list for texts of any length.
        by_text: Whether it takes one list for each text, and not one for all.
        multiplies: Whether the length of a `linear` entry is multiplied by a factor, which must
            be no integer.
        interleaves: Whether it reads lists for models with interleaved pairs.
        by_position: Whether each token is turned by the list for its own position.
        whole_heads: Whether it turns all dimensions of a head, whatever the config says.
    """

    name: str
    title: str
    source: str
    yarn_scale: Callable[[Entry], float]
    list_scale: Callable[[Entry, int], float]
    refuses: dict[str, str] = field(default_factory=dict)
    rounds: bool = False
    interpolates: Callable[[Entry, int], float] = lambda entry, _: float(entry["factor"])
    long_always: bool = False
    by_text: bool = False
    multiplies: bool = False
    interleaves: bool = True
    by_position: bool = False
    whole_heads: bool = False

    def read(self, encoding: Encoding, wanted: Wanted) -> Reading | str:
        """What it computes of an encoding; or, in words, what it does instead."""
        entry, length = encoding.entry, encoding.length
        kind = str(entry["rope_type"])
        if kind not in formulas.KNOWN or kind in self.refuses:
            return self.refuses.get(kind, f"does not compute the `{kind}` type")
        if refused := self._misreads(kind, entry, length, wanted):
            return refused
        if kind == "longrope":
            return self._lists(entry, length, wanted)
        scale = 1.0
        if kind == "yarn":
            entry = {**entry, "factor": self.interpolates(entry, length)}
            entry["truncate"] = self.rounds or entry.get("truncate", True)
            scale = self.yarn_scale(entry)
        table = formulas.frequencies(entry, wanted.dim, wanted.trained_length, length)
        return Reading(table, table, scale)

    def _misreads(self, kind: str, entry: Entry, length: int, wanted: Wanted) -> str | None:
        """What else is in the way of an entry."""
        if self.whole_heads and wanted.entry.get("partial_rotary_factor", 1) != 1:
            return "turns all dimensions of a head, and this model only some"
        lists = entry.get("short_factor"), entry.get("long_factor")
        if self.by_position and lists[0] != lists[1]:
            return "turns each token by the list for its own position, not all by one"
        if kind == "linear" and self.multiplies:
            if isinstance(entry["factor"], int):
                return "fails on a `linear` factor without a decimal point"
            if round(length * entry["factor"]) > wanted.target_length:
                return "multiplies max_position_embeddings by the factor, and it is raised already"
        if kind == "longrope" and wanted.interleaved and not self.interleaves:
            return "reads no `longrope` list for interleaved pairs"
        if kind == "yarn" and "original_max_position_embeddings" not in entry:
            return "needs original_max_position_embeddings in the entry, or takes another length"
        return None

    def _lists(self, entry: Entry, length: int, wanted: Wanted) -> Reading:
        before = formulas.original(entry, length)
        long, short = (
            wanted.standard / torch.tensor(entry[name], dtype=torch.float64)
            for name in ("long_factor", "short_factor")
        )
        target = long if self.long_always or wanted.target_length > before else short
        within = short if self.by_text and wanted.trained_length <= before else target
        return Reading(target, within, self.list_scale(entry, length))


def _told(entry: Entry) -> float:
    factor = formulas.told(entry)
    return formulas.usual(entry) if factor is None else factor


def _told_or_quotient(entry: Entry) -> float:
    both = entry.get("mscale") and entry.get("mscale_all_dim")
    return formulas.quotient(entry) if both and formulas.told(entry) is None else _told(entry)


def _quotient_or_multiple(entry: Entry) -> float:
    if "mscale" in entry and "mscale_all_dim" in entry:
        return formulas.quotient(entry)
    return formulas.usual(entry) * float(entry.get("attn_factor", 1.0))


def _root(entry: Entry, length: int) -> float:
    before = formulas.original(entry, length)
    return formulas.root(length / before, before)


def _mscale_or_root(entry: Entry, length: int) -> float:
    return float(entry.get("long_mscale") or _root(entry, length))


_NO_DYNAMIC = {"dynamic": "does not know the `dynamic` type"}
_ONE_BASE = {"dynamic": "takes one base for all lengths, that of the longest"}

VLLM = Engine(
    "vllm", "vLLM", "the rotary classes of vLLM 0.33.0, run", _told, _mscale_or_root,
    {"dynamic": "does nothing with a `dynamic` factor alone"},
    multiplies=True, interleaves=False,
)  # fmt: skip
SGLANG = Engine(
    "sglang", "SGLang", "the rotary classes of SGLang 0.5.23, run", _quotient_or_multiple,
    _mscale_or_root, _ONE_BASE, by_text=True, multiplies=True, interleaves=False,
)  # fmt: skip
TENSORRT = Engine(
    "tensorrt-llm", "TensorRT-LLM", "TensorRT-LLM's rotary code, read", formulas.quotient, _root,
    _NO_DYNAMIC, rounds=True, long_always=True, by_position=True,
)  # fmt: skip
MLX = Engine(
    "mlx", "mlx-lm", "mlx-lm's rope_utils.py, read", formulas.quotient, _root,
    {"dynamic": "works the base out for each call, so that cached keys have another"},
    rounds=True, long_always=True, interleaves=False,
)  # fmt: skip
EXLLAMAV3 = Engine(
    "exllamav3", "exllamav3", "exllamav3's rope.py, read", _told_or_quotient, _root, _NO_DYNAMIC,
    interpolates=lambda entry, length: length / entry["original_max_position_embeddings"],
)  # fmt: skip
EXLLAMAV2 = Engine(
    "exllamav2", "exllamav2", "exllamav2's config.py and attention code, read", formulas.usual,
    _root, {
        "dynamic": "does not know the `dynamic` type",
        "yarn": "counts the turns of YaRN over the new length",
    }, whole_heads=True,
)  # fmt: skip
