"""Whatever stands in a config, there is an answer, and fixing comes to rest."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropex.doctor import Checkpoint, examine, repaired
from ropex.doctor.notation_rules import _KEYS
from tests.support.doctor_configs import GOOD, Config
from tests.support.doctor_published import PUBLISHED

ROOT = (
    "model_type", "max_position_embeddings", "original_max_position_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "partial_rotary_factor", "head_dim", "hidden_size",
    "num_attention_heads", "sliding_window", "layer_types", "text_config", "auto_map",
    "vocab_size", "num_hidden_layers", "qk_rope_head_dim", "rope_local_base_freq",
)  # fmt: skip
TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3", "default", "su", "proportional")
FAMILIES = ("llama", "phi3", "mistral", "gemma3_text", "gpt_neox", "olmo2", "nemotron", "qwen2")
FILES = ("config.json", "tokenizer_config.json", "ropex.json", "adapter_config.json")
OTHER = ("model_max_length", "target_length", "trained_length", "base_model_name_or_path")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(1, 70000), st.just(10**400),
    st.floats(), st.floats(0.1, 1e6), st.text(max_size=8), st.sampled_from(TYPES + FAMILIES),
    st.sampled_from(("4.0", "1e999", "NaN", "16384")),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from((*_KEYS, *ROOT)) | st.text(max_size=8), inner, max_size=6),
    ),
    max_leaves=12,
)
entries = st.dictionaries(st.sampled_from(_KEYS), scalars, max_size=10).flatmap(
    lambda entry: st.sampled_from(TYPES).map(lambda kind: {**entry, "rope_type": kind})
)
lengths = st.sampled_from((2048, 4096, 4096.0, 8192, 16384))
plausible = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(TYPES)},
    optional={
        "factor": st.sampled_from((1.0, 2, 2.0, 4.0)), "attention_factor": st.floats(0, 2),
        "attn_factor": st.floats(0, 2), "original_max_position_embeddings": lengths,
        "rope_theta": st.sampled_from((1e4, 5e5, "1e6")), "type": st.sampled_from(TYPES),
        "beta_fast": st.sampled_from((1, 32.0)), "beta_slow": st.sampled_from((1, 32.0)),
        "factr": st.floats(), "mscale": st.floats(0, 2), "mscale_all_dim": st.floats(0, 2),
        "low_freq_factor": st.floats(1, 4), "high_freq_factor": st.floats(1, 4),
        "short_factor": st.just([1.0] * 4), "truncate": scalars,
        "long_factor": st.sampled_from(([1.0] * 4, [0.5] * 4, [2.0] * 4)),
    },
)  # fmt: skip
pair = st.fixed_dictionaries({"full_attention": plausible, "sliding_attention": plausible})
likely = st.fixed_dictionaries(
    {"model_type": st.sampled_from(FAMILIES)},
    optional={
        "rope_scaling": st.none() | plausible, "rope_parameters": plausible | pair,
        "max_position_embeddings": lengths, "original_max_position_embeddings": lengths,
        "rope_theta": st.sampled_from((1e4, 5e5, "1e6")), "sliding_window": lengths,
        "rope_local_base_freq": st.sampled_from((1e4, 5e5)),
        "head_dim": st.sampled_from((None, 8)), "hidden_size": st.just(64),
        "num_attention_heads": st.just(8),
    },
)  # fmt: skip
layered = st.fixed_dictionaries({"full_attention": entries, "sliding_attention": entries})
configs = st.fixed_dictionaries(
    {"model_type": st.sampled_from(FAMILIES)},
    optional={
        "rope_scaling": entries | anything,
        "rope_parameters": entries | layered | anything,
        **{key: anything for key in ROOT if key not in ("model_type", "rope_scaling")},
    }
    | {"rope_parameters": entries | layered | anything},
)
documents = st.fixed_dictionaries(
    {"config.json": configs | likely},
    optional={name: st.dictionaries(st.sampled_from(OTHER), anything) for name in FILES[1:]},
)


@settings(max_examples=200, deadline=None)
@given(documents)
def test_any_config_gets_an_answer_and_fixing_comes_to_rest(found: dict[str, Any]) -> None:
    before = repr(found)
    for finding in examine(Checkpoint(found)):
        json.dumps(finding.to_json(), allow_nan=False)
        assert (finding.where + finding.message + finding.fix).isprintable()
    after, _ = repaired(Checkpoint(found))
    assert repr(found) == before
    assert not any(finding.fixable for finding in examine(after))
    again, mended = repaired(after)
    assert (mended, repr(again)) == ((), repr(after))
    assert after.documents.keys() == found.keys()
    for name in FILES[2:]:
        assert repr(after.documents.get(name)) == repr(found.get(name))


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2.0, 1e400, -1e400, float("nan"), 5e-324, 1e308, 10**400, 10**5000, "",
    "1e6", "yarn", "llama3", "longrope", "\ud800", "\x1b[2J", [], [1.0], [None], [10**400], {},
    {"x": {}}, {"rope_type": {}},
    {"full_attention": {"rope_type": "yarn"}, "sliding_attention": None},
)  # fmt: skip
MUTATIONS = 400


def objects(config: Config) -> list[Config]:
    """A config and every object inside it."""
    inner = [
        each for value in config.values() if isinstance(value, dict) for each in objects(value)
    ]
    return [config, *inner]


def mutation(seed: int) -> Config:
    """A published config with one to three values changed, added or taken away."""
    rng = random.Random(seed)
    config = copy.deepcopy(rng.choice(list((GOOD | PUBLISHED).values())))
    for _ in range(rng.randint(1, 3)):
        inner = rng.choice(objects(config))
        key = rng.choice((*inner, *_KEYS, *ROOT, "x"))
        inner[key] = copy.deepcopy(rng.choice(VALUES))
        if rng.random() < 0.2:
            del inner[key]
    return config


def test_mutated_configs_get_an_answer() -> None:
    for seed in range(MUTATIONS):
        config = mutation(seed)
        for finding in examine(Checkpoint({"config.json": config})):
            json.dumps(finding.to_json(), allow_nan=False)
            assert (finding.where + finding.message + finding.fix).isprintable(), seed
        repaired(Checkpoint({"config.json": config}))


@pytest.mark.parametrize("kind", ["llama", "nemotron", "olmo2"])
def test_an_object_in_an_entry_does_not_hide_its_type(kind: str) -> None:
    entry = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "x": {}}
    found = examine(Checkpoint({"config.json": {"model_type": kind, "rope_scaling": entry}}))
    assert ("refused-by-4" in {finding.rule for finding in found}) == (kind != "llama")


@pytest.mark.parametrize("kind", ["longrope", "yarn"])
def test_a_head_of_no_size_gets_an_answer(kind: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 5e-324, "head_dim": None}
    entry = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 64}
    config = {"model_type": "mistral", "rope_scaling": entry, **sizes}
    assert examine(Checkpoint({"config.json": config}))


def test_a_factor_that_is_missing_is_not_taken_away_again() -> None:
    lengths = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}
    config = {"model_type": "phi3", "rope_scaling": {"type": "yarn"}, **lengths}
    after, _ = repaired(Checkpoint({"config.json": config}))
    assert after.documents["config.json"]["rope_scaling"]["factor"] == 32.0
