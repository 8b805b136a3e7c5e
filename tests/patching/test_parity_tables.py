"""Tables of patched models are those of transformers' own functions, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import ropex
from ropex.config.entry import read_entry
from tests.support.models import rope_settings, tiny_config, tiny_model

LENGTH = 4096  # of training; long enough that every bound of a band falls between two pairs
FACTOR = 4.0
PAIRS = 32
LONG = [1 + place / 8 for place in range(PAIRS)]
SHORT = [1 + place / 64 for place in range(PAIRS)]
ONES = [1.0] * PAIRS

LISTS = "long_factor=" + "/".join(map(str, LONG))
SHORT_LIST = "short_factor=" + "/".join(map(str, SHORT))
ORIGINAL = {"original_max_position_embeddings": LENGTH}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": FACTOR, **ORIGINAL}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": FACTOR, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    **ORIGINAL,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "long_factor": LONG, "short_factor": ONES, **ORIGINAL,
}  # fmt: skip

# Text to the config entry that transformers' documentation has for it.
STATIC: dict[str, dict[str, Any]] = {
    "linear:4": {"rope_type": "linear", "factor": FACTOR},
    "linear:1.7": {"rope_type": "linear", "factor": 1.7},
    "yarn:4": YARN,
    "yarn:1.7": {**YARN, "factor": 1.7},
    "yarn:4,attention_factor=1.25": {**YARN, "attention_factor": 1.25},
    "yarn:4,mscale=0.7,mscale_all_dim=1.3": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn:4,mscale=1,mscale_all_dim=1": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn:4,beta_fast=16": {**YARN, "beta_fast": 16.0},
    "yarn:4,beta_slow=2": {**YARN, "beta_slow": 2.0},
    "yarn:4,truncate=false": {**YARN, "truncate": False},
    "yarn:3,beta_fast=20,beta_slow=0.5,truncate=false,attention_factor=1.1": {
        **YARN, "factor": 3.0, "beta_fast": 20.0, "beta_slow": 0.5, "truncate": False,
        "attention_factor": 1.1,
    },
    "llama3:4": LLAMA3,
    "llama3:1.7": {**LLAMA3, "factor": 1.7},
    "llama3:4,alpha=2,beta=8": {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
    "llama3:16,beta=1": {**LLAMA3, "factor": 16.0, "high_freq_factor": 1.0},  # as Llama 4
    "ntk_by_parts:4": {**LLAMA3, "high_freq_factor": 32.0},
    f"longrope:4,{LISTS},{LISTS.replace('long', 'short')}": {**LONGROPE, "short_factor": LONG},
}  # fmt: skip
BY_LENGTH: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 1.0},
    "dynamic:1.7": {"rope_type": "dynamic", "factor": 1.7},
    "dynamic:4": {"rope_type": "dynamic", "factor": FACTOR},
    f"longrope:4,{LISTS}": LONGROPE,
    f"longrope:factor=4,{LISTS},{SHORT_LIST}": {
        **LONGROPE, "factor": FACTOR, "short_factor": SHORT,
    },
    f"longrope:4,{LISTS},attention_factor=1.25": {**LONGROPE, "attention_factor": 1.25},
    f"longrope:4,{LISTS},{SHORT_LIST},attention_factor=0.9": {
        **LONGROPE, "factor": FACTOR, "short_factor": SHORT, "attention_factor": 0.9,
    },
}  # fmt: skip

bases = pytest.mark.parametrize("base", [1e4, 5e5, 1e7])


def config_of(base: float, entry: dict[str, Any]) -> Any:
    """A config with this entry, and all that either version reads beside it."""
    changes: dict[str, Any] = {"max_position_embeddings": LENGTH}
    if entry["rope_type"] == "longrope":
        changes = {"max_position_embeddings": int(FACTOR * LENGTH), **ORIGINAL}
    return tiny_config("llama", head_dim=2 * PAIRS, **changes, **rope_settings(base, **entry))


def native_table(config: Any, length: int | None = None) -> tuple[Tensor, float]:
    """What a rotary module of transformers computes for sequences of this length."""
    tokens = None if length is None else torch.tensor(length)
    function = ROPE_INIT_FUNCTIONS[read_entry(config)["rope_type"]]
    table, scale = function(config, torch.device("cpu"), seq_len=tokens)
    return table, scale


def unscaled(base: float) -> Any:
    settings = rope_settings(base)
    return tiny_model("llama", head_dim=2 * PAIRS, max_position_embeddings=LENGTH, **settings)


def names(table: dict[str, Any]) -> list[str]:
    """Short names of tests, as lists of divisors are long."""
    return [f"{text.split('long_factor')[0]}{place}" for place, text in enumerate(table)]


@bases
@pytest.mark.parametrize(("text", "entry"), STATIC.items(), ids=names(STATIC))
def test_static_tables(text: str, entry: dict[str, Any], base: float) -> None:
    table, scale = native_table(config_of(base, entry))
    model = unscaled(base)
    rotary = model.model.rotary_emb
    assert not torch.equal(rotary.inv_freq, table)
    with ropex.patch(model, text):
        for length in (0, 1, LENGTH, LENGTH + 1, 5 * LENGTH):
            if length:
                rotary(torch.zeros(1), torch.arange(length)[None])
            assert rotary.inv_freq.dtype == torch.float32
            assert torch.equal(rotary.inv_freq, table)
            assert rotary.attention_scaling == scale


@bases
@pytest.mark.parametrize(("text", "entry"), BY_LENGTH.items(), ids=names(BY_LENGTH))
def test_tables_by_length(text: str, entry: dict[str, Any], base: float) -> None:
    config, model = config_of(base, entry), unscaled(base)
    rotary, seen = model.model.rotary_emb, []
    with ropex.patch(model, text):
        # Shorter ones after longer ones, as nothing may depend on what came before.
        for length in (1, LENGTH, LENGTH + 1, 2 * LENGTH, 5 * LENGTH + 3, LENGTH + 1, 7):
            positions = torch.arange(length)[None]
            made = rotary(torch.zeros(1), positions)
            # A module's first table is made without a length, and renewed beyond the trained one.
            beyond = None if length <= LENGTH else length
            table, scale = native_table(config, beyond)
            native = type(rotary)(config)
            wanted = native(torch.zeros(1), positions)
            assert rotary.inv_freq.dtype == torch.float32
            assert torch.equal(native.inv_freq, table)
            assert torch.equal(rotary.inv_freq, table)
            assert all(map(torch.equal, made, wanted))
            assert rotary.attention_scaling == scale
            seen.append(table)
    assert not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(("text", "p"), [("proportional", 0.25), ("proportional:0.5", 0.5)])
def test_proportional_tables(text: str, p: float) -> None:
    kept = int(p * PAIRS)
    for base in (1e4, 5e5, 1e7):
        model = unscaled(base)
        trained = model.model.rotary_emb.inv_freq.clone()
        with ropex.patch(model, text):
            made = model.model.rotary_emb.inv_freq
        assert torch.equal(made[kept:], torch.zeros(PAIRS - kept))
        assert torch.equal(made[:kept], trained[:kept])
        if "proportional" in ROPE_INIT_FUNCTIONS:  # not in transformers 4
            entry = {"rope_type": "proportional", "partial_rotary_factor": p}
            assert torch.equal(made, native_table(config_of(base, entry))[0])
