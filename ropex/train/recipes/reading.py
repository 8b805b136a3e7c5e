"""Find recipes, and read them with changes from the command line."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from ropex.shipped import recipes_dir
from ropex.train.recipes.recipe import Recipe, Stage
from ropex.train.recipes.schema import build, cut, shown

_OF_A_STAGE = ("strategy", "data", "training", "positions")


def shipped_recipes(pattern: str = "*") -> list[Path]:
    """The recipes that ropex ships, by name."""
    found = sorted((recipes_dir() / "finetune").glob("*.yaml"))
    return [path for path in found if fnmatch(path.stem, pattern)]


def find_recipe(name: str) -> Path:
    """The file of a recipe: one of the user's, or one that ropex ships.

    Raises:
        FileNotFoundError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    return _shipped(name, shipped_recipes())


def find_shipped(name: str) -> Path:
    """A file that ropex ships: a recipe, or one for accelerate.

    Raises:
        FileNotFoundError: There is none.
    """
    return _shipped(name, [*shipped_recipes(), *(recipes_dir() / "accelerate").glob("*.yaml")])


def _shipped(name: str, paths: list[Path]) -> Path:
    known = {path.stem: path for path in paths}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else "ropex recipes lists those that ropex has"
    raise FileNotFoundError(f"no recipe {name!r}, neither a file nor one of ropex's; {hint}")


def about(path: Path) -> str:
    """The first line of the comment at the top of a recipe."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """A recipe, with changes such as `training.steps=50`.

    Raises:
        ValueError: The file is not YAML or not a recipe; the message names the key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, too many digits
        raise ValueError(f"{path} is no YAML ({cut(' '.join(str(error).split()))})") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} holds no keys and values, so it is no recipe")
    for change in changes:
        _change(raw, change)
    try:
        return build(Recipe, _with_stages(raw))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _change(raw: dict[str, Any], change: str) -> None:
    """Set one value; `stages.0.strategy=yarn:8` counts stages from 0."""
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ValueError(f"{change!r} changes nothing; write key=value, as in training.steps=50")
    *path, last = key.split(".")
    place: Any = raw
    for part in path:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
            if place is None:  # written as `lora:` alone
                raise ValueError(f"{change}: {part} is null in the recipe; give all of it")
        else:
            raise ValueError(f"{change}: there is no {part} in {key}")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = _read(change, text)
    elif isinstance(place, dict):
        place[last] = _read(change, text)
    else:
        raise ValueError(f"{change}: there is no {last} in {key}")


def _read(change: str, text: str) -> Any:
    if text.startswith("@"):  # a strategy from a file; @ is not valid YAML
        return text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ValueError(f"{cut(change)}: {cut(text)!r} is no value of YAML") from None


def _with_stages(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with every stage in full: missing keys are those of the whole recipe."""
    common = {key: raw[key] for key in _OF_A_STAGE if key in raw}
    rest = {key: value for key, value in raw.items() if key not in _OF_A_STAGE}
    stages = raw.get("stages", [{}])
    if not isinstance(stages, list):
        raise ValueError(f"stages is {shown(stages)}; it must be a list")
    rest["stages"] = [_merged(common, stage, f"stages.{i}") for i, stage in enumerate(stages)]
    if "stages" not in raw:  # so that messages name keys that are there
        build(Stage, rest["stages"][0])
    return rest


def _merged(common: Any, own: Any, place: str) -> Any:
    """Merge mappings key by key, the second over the first; other values are replaced."""
    if not isinstance(own, dict):
        raise ValueError(f"{place} is {shown(own)}; it must be keys and values")
    merged = copy.deepcopy(common)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value, f"{place}.{key}") if both else value
    return merged
