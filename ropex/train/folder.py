"""The folder of a run: its recipe, a lock, and folders that appear whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ropex.files import atomically
from ropex.places import BUILT, put, workplace
from ropex.train.recipe import Recipe

RECIPE, FINAL, ADAPTER = "recipe.yaml", "final", "adapter"


def keep_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder of its run.

    Raises:
        FileExistsError: There is another one.
    """
    content = json.loads(json.dumps(asdict(recipe)))
    path = out / RECIPE
    if any(out.glob("stage-*")):
        there = recipe_of(out)
        if there == content:
            return
        key = next(key for key in content if there.get(key) != content[key])
        raise FileExistsError(
            f"{out} holds the run of another recipe ({key} differs); write elsewhere (-o), or "
            "remove it"
        )
    if out.exists() and not path.is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and holds no run of a recipe; write elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def recipe_of(out: Path) -> dict[str, Any]:
    """What `keep_recipe` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    path = out / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"{out} holds no run of ropex train")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list):
        raise ValueError(f"{path} is damaged")
    return content


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """See to it that no other run writes there."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"another run is at work in {out}; write elsewhere (-o)") from None
    try:
        yield
    finally:
        lock.release()


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, which appears complete or not at all."""
    with workplace(folder) as place:
        write(place / BUILT)
        put(place / BUILT, folder)
