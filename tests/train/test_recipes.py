"""Recipes: what they may say, how they are changed, and those that ropex ships."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from safetensors.torch import load_file

from ropex.config.from_file import read_strategy
from ropex.shipped import demo_checkpoint
from ropex.train.recipes.reading import about, find_recipe, read_recipe, shipped_recipes
from ropex.train.recipes.recipe import (
    Data,
    Evaluate,
    Lora,
    Positions,
    Recipe,
    Source,
    Stage,
    Training,
)
from ropex.train.recipes.schema import bounds_in
from tests.support.paths import ROOT
from tests.support.shell import Shell

SMALL: dict[str, Any] = {
    "model": "tiny",
    "strategy": "yarn:4",
    "data": {"length": "2k", "sources": [{"text": "book.txt"}]},
    "training": {"steps": 10, "batch": 4, "warmup": 0},
}


def write(folder: Path, **more: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **more}), encoding="utf-8")
    return path


def test_defaults_are_those_of_the_papers(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path))
    [stage] = recipe.stages
    assert stage.data.length == 2048
    assert stage.data.sources == (Source("book.txt"),)
    training = stage.training
    assert (training.learning_rate, training.weight_decay, training.beta2) == (2e-5, 0.0, 0.95)


def test_a_number_is_a_number_however_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(SMALL) + "lora: {alpha: 2e1, dropout: 1e-1}\n")
    assert read_recipe(path).lora == Lora(alpha=20, dropout=0.1)
    [stage] = read_recipe(path, ["training.learning_rate=5e-1"]).stages
    assert stage.training.learning_rate == 0.5


def test_changes_reach_every_place(tmp_path: Path) -> None:
    changes = (
        "strategy=linear:length=32k", "training.steps=7", "data.sources.0.text=other.txt",
        "positions={sampler: pose, window: 1k}", "lora.rank=4", "seed=3",
    )  # fmt: skip
    recipe = read_recipe(write(tmp_path), changes)
    [stage] = recipe.stages
    assert (stage.strategy, stage.training.steps, recipe.seed) == ("linear:length=32k", 7, 3)
    assert stage.data.sources[0].text == "other.txt"
    assert stage.positions == Positions("pose", 1024)  # type: ignore[arg-type]
    assert stage.window == 1024
    assert recipe.lora == Lora(rank=4)


def test_stages_say_what_is_theirs(tmp_path: Path) -> None:
    stages = [{}, {"strategy": "yarn:8", "training": {"steps": 5}, "data": {"length": "4k"}}]
    first, second = read_recipe(write(tmp_path, stages=stages), ["training.batch=2"]).stages
    assert (first.strategy, second.strategy) == ("yarn:4", "yarn:8")
    assert (first.training.steps, second.training.steps) == (10, 5)
    assert (first.training.batch, second.training.batch) == (2, 2)
    assert (first.data.length, second.data.length) == (2048, 4096)
    assert first.data.sources == second.data.sources
    changed = read_recipe(write(tmp_path, stages=stages), ["stages.1.training.steps=6"])
    assert [stage.training.steps for stage in changed.stages] == [10, 6]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"modle": "x"}, "modle is not a key of a recipe; did you mean model?"),
    "misspelt within": (
        {"training": {"steps": 1, "batch": 1, "lerning_rate": 1}},
        "training.lerning_rate is not a key of a recipe; did you mean learning_rate?",
    ),
    "unlike any": ({"lora": {"zzz": 1}}, "there are rank, alpha, dropout, targets, also"),
    "missing": ({"training": {"steps": 1}}, "training.batch is missing"),
    "text for a number": (
        {"training": {"steps": "many", "batch": 1}},
        "training.steps is 'many'; it must be a whole number",
    ),
    "half a step": ({"training": {"steps": 1.5, "batch": 1}}, "steps is 1.5; it must be a whole"),
    "truth for a number": ({"seed": True}, "seed is True; it must be a whole number"),
    "no length": ({"data": {"length": "long", "sources": []}}, "data.length: 'long' is not a"),
    "no choice": ({"dtype": "float8"}, "dtype is 'float8'; choose float32, bfloat16"),
    "no list": ({"data": {"length": 9, "sources": "a.txt"}}, "sources is 'a.txt'; it must be a"),
    "no texts": ({"data": {"length": 9, "sources": []}}, "data: sources is empty; name a text"),
    "no keys": ({"data": 5}, "data is 5; it must be keys and values"),
    "no steps": ({"training": {"steps": 0, "batch": 1}}, "steps is 0; it must be at least 1"),
    "share": (
        {"data": {"length": 9, "sources": [{"text": "a", "share": 0}]}},
        "data.sources.0: share is 0.0; it must be above 0",
    ),
    "warmup": ({"training": {"steps": 5, "batch": 1}}, "warmup is 20, and there are only 5 steps"),
    "uneven": (
        {"training": {"steps": 50, "batch": 3, "micro_batch": 2}},
        "batch is 3, which is no multiple of micro_batch, 2",
    ),
    "window": (
        {"positions": {"sampler": "pose", "window": "4k"}},
        "positions.window is 4096, and a row has 2048 tokens",
    ),
    "packed": (
        {
            "positions": {"sampler": "pose", "window": 64},
            "data": {"length": 64, "sources": [{"text": "a", "layout": "pack"}]},
        },
        "positions are drawn for rows of one document",
    ),
    "rounded": ({"dtype": "bfloat16"}, "dtype is bfloat16, in which a trained weight loses small"),
    "rounded adapters": ({"dtype": "bfloat16", "lora": {}}, "with lora, whose adapters stay"),
    "one checkpoint": (
        {"training": {"steps": 50, "batch": 1, "keep": 1}},
        "keep is 1; it must be at least 2",
    ),
    "no stages": ({"stages": []}, "stages is empty"),
    "stages": ({"stages": 3}, "stages is 3; it must be a list"),
    "stage": ({"stages": ["yarn"]}, "stages.0 is 'yarn'; it must be keys and values"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_by_its_key(tmp_path: Path, case: str) -> None:
    more, message = WRONG[case]
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as told:
        read_recipe(write(tmp_path, **more))
    assert message in str(told.value)


KINDS = (Recipe, Stage, Data, Source, Positions, Training, Lora, Evaluate)


def test_every_number_has_bounds() -> None:
    numbers = {
        f"{kind.__name__}.{name}": hint
        for kind in KINDS
        for name, hint in get_type_hints(kind, include_extras=True).items()
        if re.search(r"\b(int|float|Size)\b", str(hint).replace("NewType", ""))
    }
    assert len(numbers) == len(NOT_ALLOWED)
    assert [name for name, hint in numbers.items() if not any(bounds_in(hint))] == []


FULL = {
    "positions": {"sampler": "pose", "window": 64},
    "lora": {"rank": 4},
    "evaluate": {"lengths": [64], "every": 2},
}
NOT_ALLOWED = {
    "seed": (-1, 2**32), "trained_length": (0, -4096, 2**31), "data.length": (1, 0, -64, 2**40),
    "data.sources.0.share": (0, -1, math.inf, math.nan),
    "data.sources.0.longest": (1, 0, -64, 2**40), "positions.window": (1, -1),
    "positions.target": (0, -1, 2**40), "lora.rank": (0, -8, 10**400),
    "lora.alpha": (0, -16, math.inf, math.nan), "lora.dropout": (-0.1, 1, 2, math.nan),
    "evaluate.lengths.0": (1, 0, -64), "evaluate.excerpts": (0, -1), "evaluate.every": (0, -5),
    "training.steps": (0, -1, 10**9, 10**400), "training.batch": (0, -1, 10**9),
    "training.micro_batch": (0, -1),
    "training.learning_rate": (0, -1e-5, 1, math.inf, math.nan, 10**400),
    "training.warmup": (-1, 10**6), "training.weight_decay": (-0.1, math.inf, math.nan, 1e6),
    "training.beta2": (-0.5, 1, 2, math.inf, math.nan),
    "training.max_grad_norm": (-1, math.inf, math.nan),
    "training.shifted_attention": (1, 0, -4, 10**6), "training.save_every": (0, -1, 10**30),
    "training.keep": (1, 0, -1, 10**30), "training.log_every": (0, -1, 10**30),
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in NOT_ALLOWED.items() for value in values]
)
def test_a_number_that_would_fail_later_is_refused_when_it_is_read(
    tmp_path: Path, key: str, value: float
) -> None:
    path = write(tmp_path, **FULL)
    read_recipe(path)
    text = {math.inf: ".inf"}.get(value, ".nan" if value != value else str(value))
    with pytest.raises(ValueError, match=r"mine\.yaml: ") as told:
        read_recipe(path, [f"{key}={text}"])
    *_, name = (part for part in key.split(".") if not part.isdigit())
    assert name in str(told.value)
    assert len(str(told.value)) < 250


def test_rows_beyond_counting_are_refused(tmp_path: Path) -> None:
    changes = ["training.steps=10000000", "training.batch=11"]
    with pytest.raises(ValueError, match="steps of 110,000,000 rows in all are more than 100,000"):
        read_recipe(write(tmp_path), changes)


@pytest.mark.parametrize(
    ("text", "reason"), [("9" * 5000, "is no YAML"), ("[" * 5000, "is nested too deeply")]
)
def test_what_yaml_cannot_hold_is_one_sentence(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="is no value of YAML"):
        read_recipe(write(tmp_path), [f"seed={text}"])
    path = tmp_path / "other.yaml"
    path.write_text(f"seed: {text}", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"other\.yaml {reason}"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.steps", "write key=value"),
        ("training.steps=[", "is no value of YAML"),
        ("data.sources.7.text=x", "there is no 7"),
        ("model.name=x", "there is no name"),
        ("seeed=1", "did you mean seed?"),
        ("seed=" + "9" * 400, "it must be a whole number of at most 1e+18"),
        ("seed=" + "9" * 5000, "is no value of YAML"),
        ("training.learning_rate=" + "9" * 400, "learning_rate is 9"),
        ("training.steps=" + "[" * 5000, "is no value of YAML"),
        ('model="\\ud800"', "it must be text"),
    ],
)
def test_a_change_that_changes_nothing_is_refused(
    tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        read_recipe(write(tmp_path), [change])
    assert len(str(told.value)) < 600


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: [", "\xff", "a: " + "[" * 5000, "a: " + "9" * 5000, "a: 2024-99-99"]
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        read_recipe(path)


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_shipped_recipe_says_what_it_is(path: Path) -> None:
    recipe = read_recipe(path)
    header = path.read_text(encoding="utf-8").split("\nmodel:")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    assert f"ropex train {path.stem} -o runs/{path.stem}" in header[1]
    assert [line.split(":")[0] for line in header[2:4]] == ["# Hardware", "# Expected"]
    assert path.stem == "smoke" or "arXiv" in header[4] or "EasyContext" in header[4]
    for stage in recipe.stages:
        if not stage.strategy.startswith("@"):
            assert read_strategy(stage.strategy) is not None


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    keys = {each.name for kind in KINDS for each in fields(kind)} - {"text"}
    assert [key for key in sorted(keys) if not re.search(rf"`(\w+\.)?{key}\b", page)] == []


def test_recipes_are_listed_and_copied(world: Shell) -> None:
    status, out, _ = world("recipes")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [p.stem for p in shipped_recipes()]
    assert about(find_recipe("smoke")) in out
    assert world("recipes", "demo-*")[1].count("\n") == 4
    assert world("recipes", "copy", "smoke")[2] == "written to smoke.yaml\n"
    assert Path("smoke.yaml").read_bytes() == find_recipe("smoke").read_bytes()
    assert world("recipes", "copy", "fsdp2")[2] == "written to fsdp2.yaml\n"
    assert "smoke.yaml exists" in world.refused("recipes", "copy", "smoke")
    assert "did you mean smoke?" in world.refused("recipes", "copy", "smokee")
    assert "no recipe matches 'x'" in world.refused("recipes", "x")
    assert "give one pattern" in world.refused("recipes", "x", "y")


def test_a_run_in_vain_says_what_it_would_do(world: Shell) -> None:
    status, out, _ = world("train", "smoke", "--dry-run", "training.steps=20")
    assert status == 0
    assert "yarn:length=1k: trained at 256, for 1k" in out
    assert "20 of 4 rows, 2,048 tokens; 40,960 tokens in all" in out
    file = demo_checkpoint() / "model.safetensors"
    weights = sum(weight.numel() for weight in load_file(file).values())
    assert out.startswith(f"model     demo: {weights:,} weights, {weights:,} of them trained")
    assert not Path("runs").exists()
