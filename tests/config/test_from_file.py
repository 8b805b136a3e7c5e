"""Strategies are read out of files that others have written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.config.from_file import read_strategy, require_base
from tests.support.cases import STATIC
from tests.support.models import TRAINED, tiny_model
from tests.support.shell import Shell
from tests.support.written import write

YARN = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "finetuned": True}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
DEEPSEEK = {
    "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
    "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
}  # fmt: skip
LISTS = {"short_factor": [1.0, 1.5], "long_factor": [1, 4.25], "factor": 4}

QWEN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
GPT_OSS = {"rope_type": "yarn", "factor": 32.0, "truncate": False}
LARGER_BASE = {"rope_type": "default", "rope_theta": 1e6}

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "jquesnelle/yarn": ({"rope_scaling": YARN}, "yarn:16"),
    "Qwen's card": ({"rope_scaling": QWEN}, "yarn:4"),
    "Llama 3.1": ({"rope_scaling": LLAMA3, "rope_theta": 5e5}, "llama3:8"),
    "transformers 5": ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, "llama3:8"),
    "DeepSeek": ({"rope_scaling": DEEPSEEK}, "yarn:factor=40,mscale=0.707,mscale_all_dim=0.707"),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 8}}, "linear:8"),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic:2"),
    "a larger base": ({"rope_parameters": LARGER_BASE}, "theta:1000000"),
    "gpt-oss": ({"rope_scaling": GPT_OSS}, "yarn:factor=32,truncate=false"),
    "Phi-3": ({"rope_scaling": {"type": "su", **LISTS}},
        "longrope:factor=4,long_factor=1/4.25,short_factor=1/1.5"),
    "PhiMoE": (
        {"rope_scaling": {"type": "longrope", **LISTS, "short_mscale": 1.2, "long_mscale": 1.2}},
        "longrope:factor=4,long_factor=1/4.25,short_factor=1/1.5,attention_factor=1.2",
    ),
    "a factor of YaRN's own temperature": ({"rope_scaling": {**QWEN, "attn_factor": 0.8}},
        f"yarn:factor=4,attention_factor={0.8 * (0.1 * math.log(4) + 1)}"),
    "layers that differ": (
        {"rope_parameters": {"full_attention": QWEN, "sliding_attention": LARGER_BASE}}, "yarn:4",
    ),
    "both, of which transformers takes the older": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": LARGER_BASE},
        "linear:2",
    ),
    "both, for layers that differ": (
        {"rope_scaling": QWEN, "rope_parameters": {"full_attention": LARGER_BASE}}, "yarn:4",
    ),
    "both, of which the older lacks keys": (
        {"rope_scaling": {"type": "longrope", "long_factor": [2.0, 4.0]},
            "rope_parameters": {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.1}},
        "longrope:factor=1,long_factor=2/4,attention_factor=1.1",
    ),
    "a base alone": ({"rope_theta": 5e5, "rope_scaling": None}, "theta:500000"),
    "Pythia": ({"model_type": "gpt_neox", "rotary_emb_base": 20000, "rotary_pct": 0.25},
        "theta:20000"),
    "Gemma 3": ({"text_config": {"model_type": "gemma3_text", "rope_theta": 1e6}}, "theta:1000000"),
    "a part": ({"text_config": {"rope_scaling": QWEN}, "rope_scaling": None}, "yarn:4"),
    "a part, and another outside": ({"text_config": {"rope_scaling": QWEN}, "rope_scaling": LLAMA3},
        "yarn:4"),
    "Qwen2-VL": ({"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        "theta:1000000"),
    "Gemma 4": ({"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}},
        "proportional:0.5"),
    "LLaMA-Factory": ({"rope_scaling": "yarn", "cutoff_len": 32768}, "yarn:length=32k"),
    "its linear": ({"rope_scaling": "linear", "cutoff_len": 8192}, "linear:length=8k"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize(("content", "text"), CONFIGS.values(), ids=CONFIGS)
def test_settings_are_read(tmp_path: Path, content: Any, text: str, suffix: str) -> None:
    path = tmp_path / f"config.{suffix}"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_strategy(f"@{path}") == ropex.strategy(text)


@pytest.mark.parametrize("text", ["1.0\n1.5\n4.25\n", "1.0,1.5,4.25", "factor\n1.0\n1.5\n4.25"])
def test_a_list_of_factors_is_longrope(tmp_path: Path, text: str) -> None:
    (tmp_path / "factors.csv").write_text(text, encoding="utf-8")
    found = read_strategy(f"@{tmp_path / 'factors.csv'}:factor=8")
    assert found == ropex.strategy("longrope:factor=8,long_factor=1/1.5/4.25")


def test_a_text_form_stays_what_it_is() -> None:
    assert read_strategy("yarn:4+logn") == ropex.strategy("yarn:4+logn")


@pytest.mark.parametrize(
    "text", [t for t in STATIC if t.partition(":")[0] in ("linear", "yarn", "llama3", "ntk")]
)
def test_a_written_checkpoint_gives_its_frequencies_back(tmp_path: Path, text: str) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    write(tmp_path / "model", tmp_path / "out", text)
    rope = ropex.rope_of(tiny_model("llama"))
    found, wanted = (read_strategy(each).plan(rope) for each in (f"@{tmp_path / 'out'}", text))
    torch.testing.assert_close(found.inv_freq, wanted.inv_freq, rtol=1e-6, atol=1e-20)
    assert found.attention_scale == pytest.approx(wanted.attention_scale, abs=1e-9)
    assert rope.trained_length == TRAINED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "neither rope_scaling nor rope_parameters"),
        ("config.json", "[1]", "holds no settings"),
        ("config.json", "{", "neither JSON nor YAML"),
        ("config.json", '{"rope_scaling": {"type": "magic"}}', "rope type 'magic'; known: default"),
        ("config.json", '{"rope_scaling": {"type": "linear"}}', "a factor or a target length"),
        ("config.json", '{"rope_scaling": {"type": "linear", "factor": "x"}}', "factor is 'x'"),
        ("config.json", "[" * 3000 + "]" * 3000, "config.json is nested too deeply"),
        ("config.json", '{"rope_scaling": {"factor": 2}}', "in an entry of the type default"),
        ("config.json", '{"rope_scaling": {"type": "dynamic", "factor": 1, "alpha": 1000}}',
         "says alpha in an entry of the type dynamic, .*; it takes factor"),
        ("config.json", '{"rope_parameters": {"main": {"rope_type": "linear", "factor": 2}}}',
         "an entry for each of main, and none for full_attention"),
        ("config.json",
         '{"rope_scaling": {"type": "longrope", "short_mscale": 1, "long_mscale": 2}}',
         "short_mscale and long_mscale differ"),
        ("config.json", '{"rope_scaling": {"type": "yarn", "attn_factor": 1}}',
         "attn_factor is 1 and factor None; give numbers above 0"),
        ("config.json", '{"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 4}}',
         "type is 'linear' and rope_type 'yarn'; remove the wrong one"),
        ("config.json", '{"rope_scaling": {"type": "yarn", "factor": 4, "truncate": "false"}}',
         "truncate is 'false'; it must be true or false"),
        ("config.json", '{"rope_scaling": {"rope_type": null, "factor": 4}}',
         "has the rope type None; known: default"),
        ("t.yaml", "rope_scaling: magic\ncutoff_len: 4096", "known: linear, dynamic"),
        ("t.yaml", "rope_scaling: linear", "no cutoff_len"),
        ("f.csv", "a,b,c", "no list of factors"),
        ("f.csv", "", "no list of factors"),
    ],
)  # fmt: skip
def test_files_that_say_nothing_are_told(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_strategy(f"@{tmp_path / name}")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_strategy(f"@{tmp_path / 'nothing.csv'}")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "factors.csv").write_bytes(b"\xff\xfe1.0")
    with pytest.raises(ValueError, match=r"factors\.csv is no text in UTF-8"):
        read_strategy(f"@{tmp_path / 'factors.csv'}")


@pytest.mark.parametrize(
    ("content", "base"),
    [
        ({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}, 1e6),
        ({"rope_theta": "1e6", "rope_scaling": QWEN}, 1e6),
        ({"rope_parameters": {"full_attention": {**QWEN, "rope_theta": 5e5}}}, 5e5),
        ({"model_type": "gpt_neox", "rotary_emb_base": 2e4, "rope_scaling": QWEN}, 2e4),
        ({"model_type": "modernbert", "global_rope_theta": 2e4, "rope_scaling": QWEN}, 2e4),
        ({"text_config": {"rope_theta": 2e4, "rope_scaling": QWEN}}, 2e4),
        ({"rope_theta": None, "rope_scaling": QWEN, "rope_parameters": {"rope_theta": 2e4}}, 2e4),
        ({"rope_parameters": LARGER_BASE}, None),  # the base is the strategy
        ({"rope_scaling": QWEN}, None),
        ({"rope_scaling": "yarn", "cutoff_len": 32768}, None),
    ],
)
def test_the_strategy_of_a_file_is_refused_on_another_base(
    tmp_path: Path, content: Any, base: float | None
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    require_base(f"@{path}", base or 1e4)
    if base is None:
        return
    chosen = read_strategy(f"@{path}")
    said = f"(rope_theta) of {base:g}, and the model has 10000; write {chosen} to take"
    with pytest.raises(ValueError, match=re.escape(said)):
        require_base(f"@{path}", 1e4)


def test_texts_and_lists_of_factors_have_no_base(tmp_path: Path) -> None:
    (tmp_path / "factors.csv").write_text("1.0,2.0", encoding="utf-8")
    require_base("yarn:4", 1e4)
    require_base(f"@{tmp_path / 'factors.csv'}:factor=8", 1e4)


@pytest.mark.parametrize("verb", [("patch", "-o", "out"), ("show",), ("verify", "model")])
def test_every_verb_refuses_it(shell: Shell, tmp_path: Path, verb: tuple[str, ...]) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    content = {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "other.json").write_text(json.dumps(content), encoding="utf-8")
    told = shell.refused(verb[0], "model", *verb[1:], "-s", "@other.json")
    assert "write linear:2" in told


YARN = {"rope_type": "yarn", "factor": 4.0}
HOSTILE: dict[str, tuple[str, str]] = {
    "deep": ('{"rope_scaling":' * 9000, "nested too deeply"),
    "deep list": ('{"rope_scaling":' + "[" * 9000, "nested too deeply"),
    "endless digits": ('{"rope_scaling": ' + "1" * 5000 + "}", "is neither JSON nor YAML"),
    "a date that is none": ("a: 2024-99-99", "is neither JSON nor YAML"),
    "huge attn_factor": (json.dumps({"rope_scaling": YARN | {"attn_factor": 10**400}}), "attn_fac"),
    "lists for numbers": (json.dumps({"rope_scaling": {"type": "longrope", "short_mscale": [1]}}),
        "an mscale is"),
    "numbers for names": ("rope_scaling: {1: {}, 2: 3}", "an entry for each of 1, 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_nobody_means_is_told_in_a_sentence(tmp_path: Path, case: str) -> None:
    text, message = HOSTILE[case]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        read_strategy(f"@{tmp_path}")
    assert len(str(told.value)) < 400


@pytest.mark.parametrize("base", [10**400, [1], "x", True, -1.0])
def test_a_base_that_is_no_number_is_told(tmp_path: Path, base: Any) -> None:
    entry = YARN | {"rope_theta": base}
    (tmp_path / "config.json").write_text(json.dumps({"rope_scaling": entry}))
    with pytest.raises(ValueError, match="it must be a number above 0"):
        require_base(f"@{tmp_path}", 1e4)


def test_a_base_that_yaml_takes_for_text_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("rope_theta: 1e6\nrope_scaling: {rope_type: yarn, factor: 4}\n")
    require_base(f"@{path}", 1e6)
    with pytest.raises(ValueError, match="scales a base"):
        require_base(f"@{path}", 1e4)
