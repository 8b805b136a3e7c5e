"""However an entry is written, every reader takes it for what transformers makes of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ropex.config.entry import completed_entry
from ropex.config.from_file import read_strategy
from ropex.config.notations import version_5
from ropex.config.numbers import frequencies
from ropex.config.write import carrier
from ropex.doctor import Checkpoint, examine
from ropex.rope import Rope

ORIGINAL = "original_max_position_embeddings"
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32}
LISTS = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def config_of(kind: str = "llama", *, base: float = 1e4, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **SIZES, "rope_theta": base, **more}


def computed(
    raw: dict[str, Any], length: int | None = None
) -> tuple[dict[str, Any], Tensor, float]:
    """The entry that transformers has after loading, its table and its factor of cos and sin."""
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(copy.deepcopy(raw))
    entry = completed_entry(config)
    table, scale = ROPE_INIT_FUNCTIONS[entry["rope_type"]](
        config, torch.device("cpu"), seq_len=length
    )
    return entry, table, scale


SCALED = {
    "truncate is null": YARN | {"truncate": None},
    "a beta is 0": YARN | {"beta_fast": 0, "beta_slow": 0.0},
    "an object beside the keys": YARN | {"x": {}},
    "the pair, to the last bit": YARN | {"mscale": 0.32, "mscale_all_dim": 0.5},
    "half of the pair": YARN | {"mscale": 2.0},
    "a pair, half of it 0": YARN | {"mscale": 2.0, "mscale_all_dim": 0},
    "the lengths say the factor": LISTS | {ORIGINAL: 32},
}


@pytest.mark.parametrize("scaling", SCALED.values(), ids=SCALED)
def test_a_file_gives_what_transformers_computes(tmp_path: Path, scaling: dict[str, Any]) -> None:
    raw = config_of(rope_scaling=scaling) | {ORIGINAL: 32}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    entry, table, scale = computed(raw)
    plan = read_strategy(f"@{tmp_path}").plan(Rope.standard(16, 1e4, 32))
    torch.testing.assert_close(plan.inv_freq, table.double(), rtol=3e-6, atol=0)
    assert plan.attention_scale == scale
    torch.testing.assert_close(frequencies(entry, 16, 64, 2), table.double(), rtol=3e-6, atol=0)


ENTRIES = {
    "dynamic goes by the length of the config": {"rope_type": "dynamic", "factor": 2.0,
        ORIGINAL: 16},
    "a ramp without width, as in Kimi K2": YARN | {"beta_fast": 1.0},
    "two lengths, of which version 5 takes that at the root": YARN | {ORIGINAL: 16},
    "a factor of null is what the lengths say": YARN | {"factor": None},
}  # fmt: skip


@pytest.mark.parametrize("scaling", ENTRIES.values(), ids=ENTRIES)
def test_the_numbers_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    if scaling["factor"] is None and not version_5():
        pytest.skip("transformers 4 stops at a factor of null")
    entry, table, _ = computed(config_of(rope_scaling=scaling) | {ORIGINAL: 32}, 256)
    torch.testing.assert_close(frequencies(entry, 16, 64, 256), table.double(), rtol=3e-6, atol=0)


def lists(pairs: int, **more: Any) -> dict[str, Any]:
    divisors = {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    return {"rope_scaling": {"type": "longrope", **divisors}, ORIGINAL: 16, **more}


GOOD = {
    "rotated share of GPT-NeoX": config_of("gpt_neox", rotary_pct=0.5, **lists(4)),
    "share that StableLM has if none is said": config_of("stablelm", **lists(2)),
    "a list that stops a pair": config_of(
        rope_scaling=carrier([1.0] * 7 + [1e30], 1.0, 64), original_max_position_embeddings=64
    ),
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD)
def test_the_doctor_counts_pairs_as_transformers_does(raw: dict[str, Any]) -> None:
    assert examine(Checkpoint({"config.json": raw})) == ()


@pytest.mark.parametrize(
    ("raw", "fixable"),
    [
        ({"model_type": "gpt_neox", "rotary_emb_base": "10000"}, True),
        (config_of("gemma3_text", rope_local_base_freq="1e4"), True),
        (config_of(base=1.0), False),
        (config_of() | {"max_position_embeddings": 2**41}, False),
    ],
)
def test_the_doctor_tells_a_number_that_loading_refuses(raw: dict[str, Any], fixable: bool) -> None:
    [finding] = examine(Checkpoint({"config.json": raw}))
    assert (finding.rule, finding.fixable) == ("bad-number", fixable)
