"""A temperature in the weights computes what one in the config does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.patching.record import Record
from tests.support.models import logits, tiny_model, tokens
from tests.support.rounding import assert_alike
from tests.support.shell import Shell
from tests.support.tiny_eval import tree

IDS = tokens()
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi", "stablelm"]


def patched(shell: Shell, text: str = "yarn:4") -> None:
    shell.done("patch", "model", "-s", text, "-o", "out", "--fold-temperature")


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_weights_compute_the_temperature(shell: Shell, tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    before = tree(tmp_path / "model")
    patched(shell)
    with ropex.patch(model, "yarn:4"):
        live = logits(model, IDS)
    loaded = load_model(tmp_path / "out")
    assert ropex.rope_of(loaded).attention_scale == 1.0
    assert not torch.allclose(logits(model, IDS), live, atol=1e-3)
    assert_alike(logits(loaded, IDS), live)
    assert tree(tmp_path / "model") == before


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_folded_weights_are_verified_up_to_their_rounding(
    shell: Shell, tmp_path: Path, family: str
) -> None:
    tiny_model(family).save_pretrained(tmp_path / "model")
    patched(shell)
    told = shell.done("verify", "model", "out", "-s", "yarn:4").splitlines()
    assert [line[:4] for line in told] == ["ok  "] * 4
    assert all("folded weights are rounded" in line for line in told[1:])
    assert shell("verify", "model", "out", "-s", "linear:4")[0] == 1
    source, name = tmp_path / "model", "model.safetensors"
    (tmp_path / "out" / name).write_bytes((source / name).read_bytes())  # nothing folded
    status, out, _ = shell("verify", "model", "out", "-s", "yarn:4")
    assert status == 1
    assert [line[:4] for line in out.splitlines()] == ["ok  ", "FAIL", "FAIL", "FAIL"]


def test_a_damaged_file_is_told(shell: Shell, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    header = b'{"a": {"dtype": "nothing", "shape": [1], "data_offsets": [0, 4]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model" / "model.safetensors").write_bytes(content)
    told = shell.refused("patch", "model", "-s", "yarn:4", "-o", "out", "--fold-temperature")
    assert "model.safetensors is damaged" in told


def test_only_the_files_that_hold_queries_are_rewritten(shell: Shell, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="12KB")
    patched(shell)
    index: dict[str, Any] = json.loads(
        (tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8")
    )["weight_map"]
    queries = {file for name, file in index.items() if "q_proj" in name}
    others = set(index.values()) - queries
    assert queries
    assert others
    for name in index.values():
        same = (tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
        assert same == (name in others)


def test_the_record_says_what_was_folded(shell: Shell, folder: Path, tmp_path: Path) -> None:
    patched(shell)
    record = Record.read(tmp_path / "out")
    assert record is not None
    assert record.folded_temperature == pytest.approx(1.1386294361119891)
    assert record.strategy.startswith("yarn:4+temperature:0.878")


def test_without_a_temperature_nothing_is_rewritten(shell: Shell, folder: Path) -> None:
    patched(shell, "linear:4")
    weights = [tree(folder.with_name(name))["model.safetensors"] for name in ("model", "out")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gemma3_text"])
def test_models_without_query_weights_of_their_own_are_refused(
    shell: Shell, tmp_path: Path, family: str
) -> None:
    tiny_model(family).save_pretrained(tmp_path / "model")
    load_skeleton(tmp_path / "model")
    told = shell.refused("patch", "model", "-s", "yarn:4", "-o", "out", "--fold-temperature")
    assert "fold" in told
