"""What is no checkpoint of a causal language model: each verb says what it is and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.errors import UnsupportedModel
from tests.support.models import tiny_tokenizer
from tests.support.shell import Shell

VERBS = {
    "eval": ("eval", "{}", "--data", "book.txt", "-o", "out"),
    "plan": ("eval", "{}", "-s", "yarn:4", "--dry-run"),
    "show": ("show", "{}"),
    "suggest": ("suggest", "{}", "--length", "16k"),
    "patch": ("patch", "{}", "-s", "yarn:4", "-o", "new"),
    "verify": ("verify", "{}", "{}"),
    "export": ("export", "{}", "--for", "vllm"),
    "check": ("eval", "{}", "--check"),
    "train": ("train", "smoke", "model={}", "--dry-run"),
}


@pytest.fixture
def shell(shell: Shell, tmp_path: Path) -> Shell:
    (tmp_path / "book.txt").write_text("words " * 900, encoding="utf-8")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(20))
    return shell


def save_config(folder: Path, model_type: str) -> Path:
    """A checkpoint of a family by its config; its weights are beside the point."""
    AutoConfig.for_model(model_type).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_gguf_file_is_told_from_a_folder(shell: Shell, verb: str) -> None:
    told = shell.refused(*(word.format("m.gguf") for word in VERBS[verb]))
    assert "m.gguf is a GGUF file" in told
    assert "config.json" in told
    assert "ropex doctor" in told
    assert "--gguf" in told


@pytest.mark.parametrize("name", ["m.gguf", "./m.gguf", "M.GGUF"])
def test_a_gguf_file_is_told_however_it_is_named(shell: Shell, name: str) -> None:
    Path("M.GGUF").write_bytes(b"GGUF")
    assert "is a GGUF file" in shell.refused("show", name)


def test_a_gguf_file_that_is_not_there_is_not_asked_for_on_the_hub(shell: Shell) -> None:
    for verb in ("show", "doctor"):
        told = shell.refused(verb, "none.gguf")
        assert "no such file: 'none.gguf'" in told


@pytest.mark.parametrize("name", ["tiny/config.json", "book.txt"])
def test_a_file_is_told_from_a_folder(shell: Shell, name: str) -> None:
    save_config(Path("tiny"), "llama")
    told = shell.refused("show", name)
    assert f"{name} is a file" in told
    assert "folder" in told


def test_a_folder_of_gguf_files_is_told(shell: Shell) -> None:
    Path("ggufs").mkdir()
    Path("m.gguf").rename("ggufs/m.gguf")
    told = shell.refused("show", "ggufs")
    assert "holds no config.json" in told
    assert "GGUF" in told


def test_the_doctor_tells_a_file_that_it_does_not_read(shell: Shell) -> None:
    told = shell.refused("doctor", "book.txt")
    assert "no such" not in told
    assert "book.txt is a different kind of file" in told


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_with_images_is_told_what_to_do(shell: Shell, verb: str) -> None:
    save_config(Path("vl"), "qwen2_vl")
    told = shell.refused(*(word.format("./vl") for word in VERBS[verb]))
    assert "qwen2_vl" in told
    assert "causal language model" in told
    assert "ropex.patch" in told
    assert "Unrecognized" not in told


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "t5", "vit"])
def test_what_transformers_has_no_causal_model_for(tmp_path: Path, model_type: str) -> None:
    folder = save_config(tmp_path / "model", model_type)
    for load in (load_skeleton, load_model):
        with pytest.raises(UnsupportedModel, match=f"{model_type} .*ropex.patch"):
            load(folder)


def test_the_doctor_reads_models_with_images(shell: Shell) -> None:
    save_config(Path("vl"), "qwen2_vl")
    status, out, _ = shell("doctor", "vl")
    assert status in (0, 1)
    assert "vl" in out


def test_what_the_config_names_is_in_the_advice(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "model", "llava")
    config = AutoConfig.from_pretrained(folder)
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    with pytest.raises(UnsupportedModel, match="LlavaForConditionalGeneration"):
        load_skeleton(folder)
    assert find(str(folder)) == folder
