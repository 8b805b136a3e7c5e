"""A recipe, a folder in which it trains, and what a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from ropex.train.recipes.reading import read_recipe
from ropex.train.recipes.run import train
from tests.support.models import save_checkpoint
from tests.support.tiny_eval import words

RECIPE: dict[str, Any] = {
    "model": "tiny",
    "strategy": "yarn:4",
    "data": {"length": 64, "sources": [{"text": "docs.jsonl:text"}]},
    "training": {
        "steps": 4, "batch": 4, "micro_batch": 2, "warmup": 0, "learning_rate": 1e-2,
        "save_every": 2, "log_every": 1,
    },
}  # fmt: skip
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown recipe": (("training.stepz=3",), "training.stepz is not a key"),
    "no text": (("data.sources.0.text=nowhere.txt",), "no such file or folder: nowhere.txt"),
    "too short": (("data.length=4k",), "the longest of 20 documents has 291 tokens"),
    "no model": (("model=./nowhere",), "no such folder: './nowhere'"),
    "strategy": (("strategy=yarm:4",), "did you mean 'yarn'"),
    "target": (("positions={sampler: pose, window: 24, target: 8}",), "target"),
    "adapters": (("lora.targets=[q]",), "the model has no q; it has"),
    "attention": (("attention=nonsense",), "nonsense"),
    "optimizer": (("optimizer=nonsense",), "nonsense"),
}


def furnish(folder: Path) -> None:
    save_checkpoint(folder / "tiny")
    lines = (json.dumps({"text": words(100 + 10 * seed, seed)}) for seed in range(20))
    (folder / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "mine.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")


def run(out: str, *changes: str, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Train by the recipe, changed; the folder of the run."""
    train(read_recipe(Path("mine.yaml"), changes), Path(out), tell=tell)
    return Path(out)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "final" / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


class Stop(Exception):
    """As if someone had pulled the plug."""


def stop_at(beginning: str) -> Callable[[str], None]:
    """What pulls the plug when a run says something that begins like this."""

    def stop(line: str) -> None:
        if line.startswith(beginning):
            raise Stop

    return stop
