"""What is given to a public function in the wrong place is answered with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from tests.support.models import tiny_model

VALUES: list[Any] = [None, 3, 2.5, b"yarn:4", {}, [], object(), dict, torch.zeros(2)]


def told(function: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(TypeError) as caught:
        function(*args, **kwargs)
    last = caught.traceback[-1].path
    assert Path(ropex.__file__).parent in Path(last).parents  # and not deep in a library
    return str(caught.value)


@pytest.mark.parametrize("value", [*VALUES, "./llama", Path()], ids=lambda v: type(v).__name__)
def test_what_is_no_model_is_told(value: Any, tmp_path: Path) -> None:
    wanted = "it must be a loaded model of transformers"
    assert wanted in told(ropex.patch, value, "yarn:4")
    assert wanted in told(ropex.rope_of, value)
    assert wanted in told(ropex.save, value, tmp_path)


def test_the_class_of_a_model_is_no_model(llama: Any) -> None:
    message = told(ropex.patch, type(llama), "yarn:4")
    assert message.startswith("model is the class LlamaForCausalLM, it must be a loaded model")


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_what_is_no_strategy_is_told(llama: Any, value: Any, tmp_path: Path) -> None:
    wanted = "it must be a text such as 'yarn:4', or a ropex.Strategy"
    assert wanted in told(ropex.strategy, value)
    assert wanted in told(ropex.patch, llama, value)
    if value is not None:
        assert wanted in told(ropex.load, tmp_path, value)
    assert "it must be a text such as 'ntk*'" in told(ropex.list_strategies, value)


@pytest.mark.parametrize(
    "value", [each for each in VALUES if each != b"yarn:4"], ids=lambda v: type(v).__name__
)
def test_what_is_no_path_is_told(llama: Any, value: Any, tmp_path: Path) -> None:
    assert "it must be a checkpoint's folder or hub id" in told(ropex.load, value)
    assert "folder is " in told(ropex.save, llama, value)
    if value is not None:
        assert "the folder of a PEFT adapter" in told(ropex.load, tmp_path, adapter=value)
    assert "ropex.patch takes a loaded model" in told(ropex.load, llama)


@pytest.mark.parametrize("value", ["32", 1.5, True, [], torch.tensor(32)], ids=str)
def test_a_length_is_a_whole_number(llama: Any, value: Any) -> None:
    wanted = "it must be a whole number of tokens, or None"
    assert wanted in told(ropex.patch, llama, "yarn:4", trained_length=value)
    assert wanted in told(ropex.rope_of, llama, value)


@pytest.mark.parametrize("value", ["float", torch.float32, None])
def test_a_dtype_is_one_of_four_texts(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it must be 'auto' or 'float32' or 'bfloat16' or"):
        ropex.load(tmp_path, dtype=value)


def test_a_model_without_a_patch_is_saved(tmp_path: Path) -> None:
    from ropex.families import tiny

    for family, model in (
        ("llama", tiny_model("llama")),
        ("recurrent_gemma", tiny.tiny_model("recurrent_gemma")),
    ):
        ropex.save(model, tmp_path / family)
        again = ropex.load(tmp_path / family)
        ids = torch.arange(1, 9)[None]
        assert torch.equal(model(ids).logits, again(ids).logits)
        assert not (tmp_path / family / "ropex.json").exists()
