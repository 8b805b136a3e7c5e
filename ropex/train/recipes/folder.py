"""The folder of a run: its recipe, a lock, and subfolders that appear complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from ropex.files.locks import NAME as LOCK
from ropex.files.locks import locked
from ropex.files.places import BUILT, put, workplace
from ropex.files.writing import atomically, half_written
from ropex.train.recipes.recipe import Recipe
from ropex.train.recipes.whole import is_changed

RECIPE, FINAL, ADAPTER = "recipe.yaml", "final", "adapter"
_WRITTEN = ("recipe.*", "log.*", "untouched.*", "rows/*", "stage-*/perplexity-by-length.*")
"""Files that `ropex.files.writing.atomically` writes here."""


@contextmanager
def claimed(recipe: Recipe, out: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder of a run for a recipe, exclusively, in the block.

    Args:
        recipe: The recipe; written into the folder.
        out: The folder.
        tell: Called with a line for every leftover of a killed run, which is removed.

    Raises:
        FileExistsError: It belongs to a different recipe, holds something else, or is in use.
    """
    content = json.loads(json.dumps(asdict(recipe)))
    if not (out / LOCK).exists():  # not in use; a refusal then touches no file
        _check(content, out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _check(content, out)  # another process may have been quicker
        _clear(out, tell)
        with atomically(out / RECIPE) as temporary:
            temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        yield


def _check(content: dict[str, Any], out: Path) -> None:
    """Raise a FileExistsError if a folder is not free for a recipe."""
    if any(out.glob("stage-*")):
        there = recipe_of(out)
        if there != content:
            keys = (key for key in {**content, **there} if there.get(key) != content.get(key))
            raise FileExistsError(
                f"{out} holds the run of a different recipe ({next(keys)} differs); write "
                "elsewhere (-o), or remove it"
            )
        return
    others = out.exists() and any(path.name != LOCK for path in out.iterdir())
    if others and not (out / RECIPE).is_file():
        raise FileExistsError(f"{out} is not empty and holds no run of a recipe; write elsewhere")


def _clear(out: Path, tell: Callable[[str], None]) -> None:
    """Remove half-written files of a killed run, and damaged rows."""
    for path in half_written(out, _WRITTEN):
        path.unlink()
        tell(f"{path} was half written when a run was killed, and is removed")
    for path in filter(is_changed, out.glob("rows/*.arrow")):
        path.unlink()
        tell(f"{path} is damaged; its rows are cut from the texts again")


def recipe_of(out: Path) -> dict[str, Any]:
    """The recipe that `claimed` wrote.

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


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that appears complete or not at all.

    Raises:
        OSError: It could not be written.
    """
    try:
        with workplace(folder) as place:
            write(place / BUILT)
            put(place / BUILT, folder)
    except (OSError, SafetensorError) as error:
        raise not_written(folder, error) from error


def not_written(path: Path, error: Exception) -> OSError:
    """The error for a full disk, whose own error names no file."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return OSError(f"{path} could not be written ({reason})")
