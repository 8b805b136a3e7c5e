"""How each engine reads a rope entry: in what it differs from transformers, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ropex.config import numbers as formulas
from ropex.engines.encodings import Encoding
from ropex.engines.facts import Engine
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


def read(engine: Engine, encoding: Encoding, wanted: Wanted) -> Reading | str:
    """What an engine computes of an encoding; or, in words, what it does instead."""
    entry, length = encoding.entry, encoding.length
    kind = str(entry["rope_type"])
    if kind not in formulas.KNOWN or kind in engine.refuses:
        return engine.refuses.get(kind, f"does not compute the `{kind}` type")
    if refused := _misreads(engine, encoding, wanted):
        return refused
    if kind == "longrope":
        return _lists(engine, entry, length, wanted)
    scale = 1.0
    if kind == "yarn":
        entry = {**entry, "truncate": engine.rounds or entry.get("truncate", True)}
        if engine.by_lengths:
            entry["factor"] = length / entry["original_max_position_embeddings"]
        scale = yarn_scale(engine, entry)
    table = formulas.frequencies(entry, wanted.dim, wanted.trained_length, length)
    return Reading(table, table, scale)


def yarn_scale(engine: Engine, entry: Entry) -> float:
    """What an engine multiplies cos and sin by for a `yarn` entry."""
    mscales = [entry.get(key) for key in ("mscale", "mscale_all_dim")]
    there = {
        "attention_factor": entry.get("attention_factor") is not None,
        "mscale": True,  # both have defaults
        "both mscales": None not in mscales,
        "nonzero mscales": all(mscales),
        "attn_factor": "attn_factor" in entry,
    }
    found = next((key for key in engine.yarn if there[key]), None)
    if found == "attention_factor":
        return float(entry["attention_factor"])
    if found == "attn_factor":
        return formulas.usual(entry) * float(entry["attn_factor"])
    return formulas.usual(entry) if found is None else formulas.quotient(entry)


def _misreads(engine: Engine, encoding: Encoding, wanted: Wanted) -> str | None:
    """What else is in the way of an entry."""
    entry, kind = encoding.entry, encoding.entry["rope_type"]
    if engine.whole_heads and wanted.entry.get("partial_rotary_factor", 1) != 1:
        return "rotates all dimensions of a head, and this model only some"
    if engine.by_position and entry.get("short_factor") != entry.get("long_factor"):
        return "rotates each token by the list for its own position, not all by one"
    if kind == "linear" and engine.multiplies:
        if isinstance(entry["factor"], int):
            return "fails on a `linear` factor without a decimal point"
        if round(encoding.length * entry["factor"]) > wanted.target_length:
            return "multiplies max_position_embeddings by the factor, and it is raised already"
    if kind == "longrope" and wanted.interleaved and not engine.interleaves:
        return "reads no `longrope` list for interleaved pairs"
    if kind == "yarn" and "original_max_position_embeddings" not in entry:
        return "needs original_max_position_embeddings in the entry, or takes another length"
    return None


def _lists(engine: Engine, entry: Entry, length: int, wanted: Wanted) -> Reading:
    before = formulas.original(entry, length)
    long, short = (
        wanted.standard / torch.tensor(entry[name], dtype=torch.float64)
        for name in ("long_factor", "short_factor")
    )
    target = long if engine.long_always or wanted.target_length > before else short
    within = short if engine.by_text and wanted.trained_length <= before else target
    scale = entry.get("long_mscale") if engine.long_mscale else None
    return Reading(target, within, float(scale or list_scale(entry, length)))


def list_scale(entry: Entry, length: int) -> float:
    """What a `longrope` entry gives that is read from `max_position_embeddings` alone."""
    before = formulas.original(entry, length)
    return formulas.root(length / before, before)
