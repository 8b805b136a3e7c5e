"""The trained length is stated, by the caller or by the file: nobody takes a family's default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import ropex
from ropex.checkpoints.find import load_skeleton
from ropex.model.trained_length import require_stated
from tests.support.models import tiny_model

DEFAULT = "does not say the trained length in a number"


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A checkpoint whose config does not say it; transformers takes 2048."""
    tiny_model("llama").save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del raw["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "use",
    [
        lambda folder, **given: ropex.patch(loaded(folder), "yarn:4", **given),
        lambda folder, **given: ropex.patch(load_skeleton(folder), "yarn:4", **given),
        lambda folder, **given: ropex.rope_of(loaded(folder), **given),
        lambda folder, **given: ropex.load(folder, "yarn:4", **given),
    ],
    ids=["patch", "patch a skeleton", "rope_of", "load"],
)
def test_a_default_is_not_taken_for_it(silent: Path, use: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=DEFAULT):
        use(silent)
    use(silent, trained_length=64)


def test_a_config_made_in_memory_is_a_statement(silent: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_sizes(silent)))
    assert ropex.rope_of(model).trained_length == 2048


def _sizes(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in raw.items() if name.endswith("size")}


@pytest.mark.parametrize(
    ("content", "states"),
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
    tmp_path: Path, content: dict[str, Any], states: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    config = AutoConfig.for_model("gpt2")
    config._name_or_path = str(tmp_path)
    site: Any = SimpleNamespace(lengths=("max_position_embeddings",), config=config)
    model = SimpleNamespace(config=config)
    if states:
        require_stated(model, site, None)
    else:
        with pytest.raises(ValueError, match=DEFAULT):
            require_stated(model, site, None)
