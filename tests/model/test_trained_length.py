"""The trained length is stated or read from a file; what a family fills in is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import ropex
from ropex.engines.wanted import read
from ropex.model.rotary import sites
from ropex.model.trained_length import _says
from ropex.train.recipes.recipe import Data, Recipe, Source, Stage, Training
from ropex.train.recipes.schema import Size
from ropex.train.recipes.stages import changed
from ropex_eval.training.in_training import trained_length
from tests.support.models import tiny_config, tiny_model

DEFAULT = LlamaConfig().max_position_embeddings
Reader = Callable[[Path, int | None], int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint whose config.json does not say the trained length."""
    tiny_model(max_position_embeddings=32).save_pretrained(tmp_path)
    return rewritten(tmp_path, max_position_embeddings=None)


def rewritten(folder: Path, **changes: Any) -> Path:
    """With other values in config.json; None takes one away."""
    file = folder / "config.json"
    raw = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))
    return folder


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def by_patch(folder: Path, stated: int | None) -> int:
    return ropex.patch(loaded(folder), "yarn:4", trained_length=stated).rope.trained_length


def by_rope(folder: Path, stated: int | None) -> int:
    return ropex.rope_of(loaded(folder), stated).trained_length


def by_config_alone(folder: Path, stated: int | None) -> int:
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return ropex.rope_of(model, stated).trained_length


def by_load(folder: Path, stated: int | None) -> int:
    return ropex.rope_of(ropex.load(folder, "yarn:4", trained_length=stated)).trained_length // 4


def by_training(folder: Path, stated: int | None) -> int:
    training = Training(steps=1, batch=1, micro_batch=1, warmup=0)
    stage = Stage("yarn:4", Data(Size(64), (Source("book.txt"),)), training)
    size = None if stated is None else Size(stated)
    recipe = Recipe(str(folder), (stage,), trained_length=size)
    with changed(loaded(folder), stage, recipe.trained_length) as handle:
        return handle.rope.trained_length


def by_export(folder: Path, stated: int | None) -> int:
    return read(folder, "yarn:4", trained_length=stated).trained_length


READERS = [by_patch, by_rope, by_config_alone, by_load, by_training, by_export]


@pytest.mark.parametrize("read_by", READERS)
def test_a_default_is_not_taken_for_the_trained_length(folder: Path, read_by: Reader) -> None:
    words = re.escape(f"{folder / 'config.json'} does not say the trained length") + (
        ".*the default of llama would be a guess; give --trained-length N"
    )
    with pytest.raises(ValueError, match=words):
        read_by(folder, None)
    assert read_by(folder, 64) == 64
    assert read_by(rewritten(folder, max_position_embeddings=DEFAULT), None) == DEFAULT


def test_a_measurement_in_training_marks_no_guess(folder: Path) -> None:
    assert trained_length(sites(loaded(folder))) is None
    assert trained_length(sites(tiny_model(max_position_embeddings=48))) == 48


def test_what_is_set_in_python_is_stated(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, max_position_embeddings=48)
    assert ropex.rope_of(model).trained_length == 48
    made = LlamaForCausalLM(tiny_config(max_position_embeddings=DEFAULT))
    assert ropex.rope_of(made).trained_length == DEFAULT


def test_what_a_patch_was_told_holds_for_the_next(folder: Path) -> None:
    model = loaded(folder)
    with ropex.patch(model, "linear:2", trained_length=DEFAULT), ropex.patch(model, "logn") as last:
        assert last.rope.trained_length == 2 * DEFAULT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"max_position_embeddings": 64}, True),
        ({"n_positions": 64}, True),
        ({"text_config": {"max_position_embeddings": 64}}, True),
        ({}, False),
        ({"max_position_embeddings": None, "text_config": None}, False),
        ({"max_position_embeddings": "64"}, False),
        ({"vision_config": {"max_position_embeddings": 64}}, False),
    ],
)
def test_it_is_looked_for_under_the_names_that_a_family_gives_it(
    content: dict[str, Any], says: bool
) -> None:
    names = {"max_position_embeddings", "n_positions"}
    assert _says(content, AutoConfig.for_model("gpt2"), names) == says
