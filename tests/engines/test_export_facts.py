"""What exports rest on: facts about engines, measured again where their code can be imported."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import ropex
from ropex.engines import export, exports
from ropex.engines.encodings import encodings
from ropex.engines.wanted import read
from ropex.files.writing import write_json
from tests.support.cases import STATIC
from tests.support.configs import write_config
from tests.support.models import TRAINED

VERSION = int(transformers.__version__.split(".")[0])
HERE = f"transformers{VERSION}"
only_5 = pytest.mark.skipif(VERSION < 5, reason="the notation of transformers 5")
only_4 = pytest.mark.skipif(VERSION >= 5, reason="transformers 4")


def rotary(folder: Path) -> Any:
    """The rotary module that transformers builds by itself."""
    return LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))


def with_config(folder: Path, keys: dict[str, Any] | None) -> Path:
    """The checkpoint with these keys in its config."""
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, **(keys or {})}), encoding="utf-8")
    return folder


def with_entry(folder: Path, entry: dict[str, Any], **keys: Any) -> Path:
    """The checkpoint with an entry in both notations."""
    both = {"rope_parameters": {"rope_theta": 1e4, **entry}, "rope_scaling": entry}
    return with_config(folder, {**both, **keys})


def off(table: Tensor, wanted: Tensor) -> float:
    turning = wanted > 0
    assert (table[~turning].abs() < 1e-20).all()
    return max((table[turning].double() / wanted[turning] - 1).abs().tolist(), default=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "model")


@pytest.mark.parametrize("text", STATIC)
def test_the_exported_config_is_computed_by_transformers(folder: Path, text: str) -> None:
    found = export(folder, HERE, text)
    assert found.exactness == "exact"
    module = rotary(with_config(folder, found.config))
    plan = ropex.strategy(text).plan(ropex.rope.Rope.standard(16, 1e4, TRAINED))
    assert off(module.inv_freq, plan.inv_freq) < 2e-6
    assert module.attention_scaling == pytest.approx(float(plan.attention_scale), abs=1e-9)
    after = export(folder, HERE)  # nothing is left to change
    assert (after.exactness, after.config) == ("exact", None)


@pytest.mark.parametrize("text", ["yarn:4", "linear:4", "mrrope:4", "ntk:4"])
def test_a_patched_checkpoint_exports_as_was_foreseen(folder: Path, text: str) -> None:
    foreseen = read(folder, text).patched
    with_config(folder, foreseen.config)
    record = {"strategy": text, "trained_length": TRAINED, "target_length": 4 * TRAINED}
    write_json(folder / "ropex.json", record | {"inv_freq_sha256": ""})
    plain = [replace(each, reason="") for each in exports(foreseen)]  # which may name the flag
    assert [replace(each, reason="") for each in exports(read(folder))] == plain
    by_name = {each.engine: each for each in plain}
    for name in ("vllm", "sglang"):  # they read the file
        assert len(by_name[name].flags) == 2
    if text == "linear:4":  # whose version 2 wants the old name
        config = by_name["exllama"].config
        assert config is not None
        assert config["rope_scaling"]["type"] == "linear"


@only_4
def test_fact_1_version_4_ignores_the_new_notation(folder: Path) -> None:
    entry = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    with_config(folder, {"rope_parameters": entry, "rope_theta": None, "rope_scaling": None})
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del raw["rope_theta"], raw["rope_scaling"]
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert off(rotary(folder).inv_freq, ropex.rope.Rope.standard(16, 1e4, 2).inv_freq) < 1e-6
    # So the export for it adds the old notation, and what it computes is what 5 would.
    found = export(folder, "transformers4")
    assert found.config is not None
    assert found.config["rope_theta"] == 5e5
    wanted = ropex.rope.Rope.standard(16, 5e5, 2).inv_freq / 4
    assert off(rotary(with_config(folder, found.config)).inv_freq, wanted) < 1e-6


@only_5
def test_fact_1_version_5_strips_the_old_notation(folder: Path, tmp_path: Path) -> None:
    with_config(folder, export(folder, HERE, "yarn:4").config)
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path / "again")
    raw = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert not {"rope_theta", "rope_scaling"} & raw.keys()
    assert export(tmp_path / "again", "transformers5").config is None
    assert export(tmp_path / "again", "transformers4").config is not None


@only_5
def test_fact_2_a_base_that_is_set_later_has_no_effect(folder: Path) -> None:
    config: Any = AutoConfig.from_pretrained(folder)
    config.rope_theta = 5e5
    table = LlamaRotaryEmbedding(config).inv_freq
    assert off(table, ropex.rope.Rope.standard(16, 1e4, 2).inv_freq) < 1e-6


@only_5
def test_fact_4_a_length_with_a_decimal_point_is_refused(folder: Path) -> None:
    with_config(folder, {"max_position_embeddings": 128.0})
    with pytest.raises(Exception, match="max_position_embeddings"):
        AutoConfig.from_pretrained(folder)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        export(folder, "mlx")


def test_fact_5_dynamic_starts_at_the_length_in_the_config(folder: Path) -> None:
    entry = {"rope_type": "dynamic", "factor": 4.0}
    raised = rotary(with_entry(folder, entry, max_position_embeddings=128))
    untouched = raised.inv_freq.clone()
    raised(torch.zeros(1, 1, 1), torch.arange(128)[None])
    assert torch.equal(raised.inv_freq, untouched)
    # And it keeps the base of the longest text: hence no exact export.
    module = rotary(with_entry(folder, entry, max_position_embeddings=TRAINED))
    tables = []
    for length in (128, 64):
        module(torch.zeros(1, 1, 1), torch.arange(length)[None])
        tables.append(module.inv_freq.clone())
    assert torch.equal(*tables)
    assert export(folder, HERE).exactness == "approximate"


def test_fact_6_casting_rounds_the_frequencies(folder: Path) -> None:
    module = rotary(folder)
    exact = module.inv_freq.double()
    assert 1e-3 < off(module.to(torch.bfloat16).inv_freq, exact) < 4e-3


@pytest.mark.parametrize("text", ["ntk_mixed:4", "clip:4", "linear:2+ntk:2"])
def test_fact_7_equal_lists_carry_any_frequencies(folder: Path, text: str) -> None:
    wanted = read(folder, text)
    lists = [each for each in encodings(wanted) if each.entry["rope_type"] == "longrope"]
    for each in lists:
        with_entry(folder, each.entry, max_position_embeddings=each.length)
        module = rotary(folder)
        assert module.attention_scaling == 1.0
        assert off(module.inv_freq, wanted.inv_freq) < 2e-6


def test_lists_with_a_temperature_come_with_the_lengths_that_were_measured(folder: Path) -> None:
    lists = [e.entry for e in encodings(read(folder, "mrrope:4")) if "long_mscale" in e.entry]
    lengths = [entry["original_max_position_embeddings"] for entry in lists]
    scale = 0.1 * math.log(4) + 1
    assert lengths == [4 * TRAINED, TRAINED, round((4 * TRAINED) ** (1 / scale**2))]
    for entry in lists:
        assert entry["attention_factor"] == entry["short_mscale"] == entry["long_mscale"]


@pytest.mark.parametrize("factor", ["4", "1.7", "3", "2.5"])
def test_fact_8_llama3_with_all_pairs_low_is_linear_bit_for_bit(folder: Path, factor: str) -> None:
    wanted = read(folder, f"linear:{factor}")
    tables = []
    for kind in ("linear", "llama3"):
        each = next(each for each in encodings(wanted) if each.entry["rope_type"] == kind)
        entry = {key: value for key, value in each.entry.items() if key != "rope_theta"}
        with_entry(folder, entry, max_position_embeddings=each.length)
        tables.append(rotary(folder).inv_freq)
    assert torch.equal(*tables)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("factor", "raised"), [(4, False), (4.0, True)])
def test_fact_9_linear_that_fails_there_becomes_llama3(
    folder: Path, engine: str, factor: float, raised: bool
) -> None:
    length = 4 * TRAINED if raised else TRAINED
    with_entry(folder, {"rope_type": "linear", "factor": factor}, max_position_embeddings=length)
    (folder / "ropex.json").write_text(
        json.dumps({
            "strategy": "linear:4", "trained_length": TRAINED, "target_length": 4 * TRAINED,
            "inv_freq_sha256": "",
        }),
        encoding="utf-8",
    )  # fmt: skip
    found = export(folder, engine)
    override = json.loads(found.flags[1])
    assert override["rope_parameters"]["rope_type"] == "llama3"
    assert override["max_position_embeddings"] == 4 * TRAINED
    assert found.exactness == "exact"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "mlx", "exllama", "tensorrt-llm"])
def test_facts_10_and_11_dynamic_is_frozen_at_its_target(folder: Path, engine: str) -> None:
    found = export(folder, engine, "dynamic:4")
    assert found.config is not None
    base = 1e4 * 13 ** (16 / 14)  # 4 * 4 - 3, in transformers' convention
    assert found.config["rope_theta"] == pytest.approx(base, rel=1e-12)
    assert found.bound == pytest.approx(1 - 1 / 13, rel=1e-9)


@pytest.mark.parametrize("scale", [0.9, 1.0, 1.25])
def test_fact_13_three_keys_give_one_temperature(folder: Path, scale: float) -> None:
    text = f"yarn:factor=4,attention_factor={scale}"
    found = export(folder, "sglang", text)
    assert found.exactness == "exact"
    entry = json.loads(found.flags[1])["rope_parameters"]
    module = rotary(with_config(folder, export(folder, HERE, text).config))
    assert module.attention_scaling == scale
    if scale != 1:
        assert entry["mscale_all_dim"] == 0.0
        assert 0.1 * entry["mscale"] * math.log(4) + 1 == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("length", [4096, 32768, 131072])
def test_the_original_length_gives_the_temperature(folder: Path, length: int) -> None:
    with_config(folder, {"max_position_embeddings": 4096})
    wanted = read(folder, f"linear:2+temperature:1.1386294+theta:base=20000,length={length}")
    *_, last = encodings(wanted)
    original = last.entry["original_max_position_embeddings"]
    scale = math.sqrt(1 + math.log(last.length / original) / math.log(original))
    assert scale == pytest.approx(1.1386294, rel=1 / length)


@pytest.mark.parametrize("text", STATIC)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_engines_own_class_computes_the_override(folder: Path, engine: str, text: str) -> None:
    places = {
        "vllm": "vllm.model_executor.layers.rotary_embedding",
        "sglang": "sglang.srt.layers.rotary_embedding",
    }
    code = pytest.importorskip(places[engine], reason=f"{engine} is not installed")
    found = export(folder, engine, text)
    override = json.loads(found.flags[1])
    entry, limit = override["rope_parameters"], override["max_position_embeddings"]
    keys: dict[str, Any] = {"rope_parameters": entry} if engine == "vllm" else {
        "rotary_dim": 16, "base": entry["rope_theta"], "rope_scaling": entry
    }  # fmt: skip
    rope = code.get_rope(16, max_position=limit, is_neox_style=True, **keys)
    plan = ropex.strategy(text).plan(ropex.rope.Rope.standard(16, 1e4, TRAINED))
    cos, sin = rope.cos_sin_cache[1].double().chunk(2)
    phases = torch.cat([plan.inv_freq.cos(), plan.inv_freq.sin()]) * plan.attention_scale
    assert torch.allclose(torch.cat([cos, sin]), phases, atol=1e-6)
