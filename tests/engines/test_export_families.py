"""Families that engines read otherwise: interleaved pairs, latent attention, parts, layer types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from ropex.engines import ENGINES, Export, exports
from ropex.engines.wanted import Wanted, read
from ropex.families import tiny
from tests.support.configs import write_config
from tests.support.engine_formulas import llama3
from tests.support.models import TRAINED, rope_settings, tiny_config

VERSION = int(transformers.__version__.split(".")[0])
only_5 = pytest.mark.skipif(VERSION < 5, reason="an entry for each type of layer")


def saved(folder: Path, config: Any) -> Path:
    config.save_pretrained(folder)
    return folder


def by_engine(wanted: Wanted) -> dict[str, Export]:
    return {found.engine: found for found in exports(wanted)}


def expressible(wanted: Wanted) -> set[str]:
    return {name for name, e in by_engine(wanted).items() if e.exactness != "not expressible"}


@pytest.mark.parametrize("family", ["cohere", "glm"])
def test_lists_are_not_for_interleaved_pairs_everywhere(tmp_path: Path, family: str) -> None:
    folder = saved(tmp_path, tiny_config(family))
    wanted = read(folder, "ntk_mixed:4")
    assert wanted.interleaved
    assert expressible(wanted) == {"transformers4", "transformers5", "tensorrt-llm", "exllama"}
    assert "interleaved" in by_engine(wanted)["vllm"].reason
    assert expressible(read(folder, "yarn:4")) == set(ENGINES)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "phi3", "stablelm"])
def test_halves_are_not_taken_for_interleaved(tmp_path: Path, family: str) -> None:
    assert not read(saved(tmp_path, tiny_config(family))).interleaved


def test_the_softmax_of_latent_attention_is_left_to_those_who_are_checked(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny.tiny_config("deepseek_v3"))
    one = "yarn:factor=4,mscale=1,mscale_all_dim=1"  # cos and sin x 1, and all logits x 1.3
    for text in ("yarn:4", one):
        wanted = read(folder, text)
        assert expressible(wanted) == {"transformers4", "transformers5"}
        assert "latent" in by_engine(wanted)["mlx"].reason
    assert expressible(read(folder, "ntk:4")) == set(ENGINES)


def test_a_temperature_says_what_the_last_resort_is(tmp_path: Path) -> None:
    wanted = read(write_config(tmp_path), "linear:4+temperature:0.95")
    found = by_engine(wanted)["mlx"]
    assert found.exactness == "not expressible"
    assert "1.0000, not 0.9500" in found.reason
    assert "ropex patch --fold-temperature" in found.reason
    assert by_engine(wanted)["vllm"].exactness == "exact"


def test_partial_rotation_is_named_in_the_override(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny_config("stablelm"))
    wanted = read(folder, "ntk_mixed:4")
    assert wanted.dim < 16
    override = json.loads(by_engine(wanted)["vllm"].flags[1])
    entry = override["rope_parameters"]
    assert len(entry["long_factor"]) == wanted.dim // 2
    if VERSION >= 5:  # 4 has it at the root alone, where engines look as well
        assert entry["partial_rotary_factor"] == wanted.dim / 16
        assert "exllamav2 rotates all dimensions" in by_engine(wanted)["exllama"].reason


@only_5
def test_layers_that_rotate_otherwise_are_not_guessed(tmp_path: Path) -> None:
    wanted = read(saved(tmp_path, tiny.tiny_config("gemma3_text")), "linear:4")
    assert expressible(wanted) == {"transformers4", "transformers5"}
    assert "each type of layer" in by_engine(wanted)["vllm"].reason


@only_5
@pytest.mark.filterwarnings("ignore:every layer that rotates")
def test_the_text_part_of_a_larger_model_is_named(tmp_path: Path) -> None:
    wanted = read(saved(tmp_path, tiny.tiny_config("llama4")), "yarn:4")
    found = by_engine(wanted)
    override = json.loads(found["vllm"].flags[1])
    assert list(override) == ["text_config"]
    assert override["text_config"]["rope_parameters"]["factor"] == 4.0
    for name in ("transformers5", "mlx"):
        config = found[name].config
        assert config is not None
        assert list(config) == ["text_config"]


def test_the_step_of_llama_4_is_what_its_config_says(tmp_path: Path) -> None:
    entry = {
        "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": TRAINED,
    }  # fmt: skip
    settings = rope_settings(1e4, **entry) | {"max_position_embeddings": 16 * TRAINED}
    wanted = read(saved(tmp_path, tiny.tiny_config("llama4_text", **settings)))
    assert wanted.inv_freq.tolist() == pytest.approx(llama3(entry | {"rope_theta": 1e4}), rel=1e-12)
    assert expressible(wanted) == set(ENGINES) - {"llama.cpp"}
    assert {each.exactness for each in exports(wanted)} == {"exact", "not expressible"}


@only_5
def test_what_version_4_ignores_is_refused_for_it(tmp_path: Path) -> None:
    wanted = read(saved(tmp_path, tiny.tiny_config("dbrx")), "yarn:4")
    found = by_engine(wanted)["transformers4"]
    assert found.exactness == "not expressible"
    assert "ignores any scaling of dbrx" in found.reason


def test_a_table_that_no_config_says_is_refused(tmp_path: Path) -> None:
    wanted = read(saved(tmp_path, tiny.tiny_config("gptj")), "yarn:4")
    assert expressible(wanted) == set()
    assert "gptj" in by_engine(wanted)["vllm"].reason


def test_a_record_beside_the_config_is_applied_first(tmp_path: Path) -> None:
    folder = write_config(tmp_path)
    record: dict[str, Any] = {
        "strategy": "linear:2 then ntk:2", "trained_length": TRAINED, "target_length": 128,
        "inv_freq_sha256": "", "in_config": False,
    }  # fmt: skip
    (folder / "ropex.json").write_text(json.dumps(record), encoding="utf-8")
    wanted = read(folder)
    assert (wanted.trained_length, wanted.target_length) == (TRAINED, 128)
    found = by_engine(wanted)["vllm"]
    entry = json.loads(found.flags[1])["rope_parameters"]
    assert entry["rope_type"] == "longrope"
    assert entry["long_factor"] == pytest.approx([2 * 2 ** (i / 7) for i in range(8)], rel=1e-6)


@pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")
@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_old_files_without_lengths_are_read_as_transformers_does(tmp_path: Path, kind: str) -> None:
    entry = {"type": kind, "factor": 4.0}
    folder = write_config(tmp_path, rope_scaling=entry, rope_parameters=None)
    wanted = read(folder)
    assert (wanted.trained_length, wanted.target_length) == (TRAINED, 4 * TRAINED)
    found = by_engine(wanted)
    assert {name for name, e in found.items() if e.exactness == "exact"} == set(ENGINES)
    if kind == "linear":
        assert found["vllm"].flags == ("--max-model-len", "128")  # it reads the file
    else:
        override = json.loads(found["vllm"].flags[1])
        assert override["max_position_embeddings"] == 4 * TRAINED
        assert override["rope_parameters"]["original_max_position_embeddings"] == TRAINED


@pytest.mark.parametrize("length", [-5, 1, 10**30])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_a_length_that_no_model_has_is_refused(tmp_path: Path, kind: str, length: int) -> None:
    entry = {} if kind == "default" else {"rope_type": kind, "factor": 4.0}
    settings = {"max_position_embeddings": length} | rope_settings(1e4, **entry)
    folder = write_config(tmp_path, **settings)
    said = f"config.json has a length of {length:.4g} tokens, it must be from 2 to {2**40}; correct"
    for given in (None, TRAINED) if kind == "default" else (None,):
        with pytest.raises(ValueError, match=re.escape(said)):
            read(folder, trained_length=given)
