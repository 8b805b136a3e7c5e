"""Strategies out of files that others have written: configs, lists of factors, recipes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ropex.config.as_strategy import strategy_of
from ropex.config.entry import Entry, entries_of
from ropex.config.parts import NOTATIONS, Part, parts_of
from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy

_LISTS_OF_FACTORS = (".csv", ".txt")


def read_strategy(text: str) -> Strategy:
    """A strategy by its text form, or out of a file.

    Args:
        text: As for `ropex.strategy`; or `@FILE`, with further parameters behind a colon:
            `@factors.csv:factor=8`. A file may be a config.json in the notation of transformers 4
            or 5 or of jquesnelle/yarn, a checkpoint's folder, a list of LongRoPE's factors (CSV or
            text), or a recipe of LLaMA-Factory (YAML or JSON).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file says nothing about a rotary embedding, or what it says is no strategy.
    """
    if not text.startswith("@"):
        return strategy(text)
    path, further = _named(text)
    kind, given = _described(path)
    joined = ",".join([*given, further] if further else given)
    return strategy(f"{kind}:{joined}" if joined else kind)


def require_base(text: str, base: float) -> None:
    """Refuse a strategy from a file whose base differs from the model's.

    Args:
        text: As for `read_strategy`.
        base: `rope_theta` of the model to be patched.

    Raises:
        ValueError: The file scales a different base, so the result would differ too.
    """
    if not text.startswith("@"):
        return
    path, _ = _named(text)
    said = {} if path.suffix in _LISTS_OF_FACTORS else _settings(path)
    if isinstance(said.get("rope_scaling"), str):  # a recipe's
        return
    entry = _entry(path, said)
    if entry is None or entry.stated_base is None or entry.kind == "default":
        return
    if entry.base is None:
        raise ValueError(
            f"{path} says rope_theta {str(entry.stated_base)[:60]!r}; it must be a number above 0"
        )
    if not math.isclose(entry.base, base):
        raise ValueError(
            f"{path} scales a base (rope_theta) of {entry.base:g}, and the model has {base:g}; "
            f"write {read_strategy(text)} to take the strategy without the base"
        )


def _named(text: str) -> tuple[Path, str]:
    """The file that `@FILE:FURTHER` names, and the further parameters."""
    name, _, further = text[1:].partition(":")
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return path, further


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8, so nothing to read") from None


def _described(path: Path) -> tuple[str, list[str]]:
    """A strategy's name and the parameters that a file gives."""
    if path.suffix in _LISTS_OF_FACTORS:
        return "longrope", [f"long_factor={'/'.join(_numbers(path, _content(path)))}"]
    said = _settings(path)
    if isinstance(kind := said.get("rope_scaling"), str) and kind:
        return _recipe(path, kind, said)
    if (entry := _entry(path, said)) is None:
        raise ValueError(f"{path} has neither rope_scaling nor rope_parameters, so nothing to read")
    return strategy_of(entry, str(path))


def _settings(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(_content(path))  # which reads JSON as well
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # an impossible date, thousands of digits
        raise ValueError(f"{path} is neither JSON nor YAML ({type(error).__name__})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no settings")
    return said


def _entry(path: Path, said: dict[str, Any]) -> Entry | None:
    """The entry of a config's language model, of layers that see the whole context.

    Both versions of transformers believe `rope_scaling` where both notations are there; what it
    leaves out (in Phi-3, whose config takes few keys) is in the other.
    """
    found = sorted(parts_of(Part((), said)), key=lambda part: -len(part.path))
    part = next((part for part in found if any(map(part.raw.get, NOTATIONS))), None)
    if part is None:  # the base may have been changed alone
        bases = [Entry(part, (), {}) for part in found]
        return next((entry for entry in bases if entry.stated_base is not None), None)
    entries = [_of_full_attention(path, part, key) for key in NOTATIONS]
    old, new = (each or Entry(part, (), {}) for each in entries)
    if old.raw and old.kind != new.kind:
        new = replace(new, raw={"rope_theta": new.raw.get("rope_theta")})
    raw = {**new.raw, **old.raw}
    return replace(old if old.raw else new, raw=raw) if raw else None


def _of_full_attention(path: Path, part: Part, key: str) -> Entry | None:
    entries = [entry for entry in entries_of(part) if entry.path[0] == key]
    if not entries or not entries[0].layer_type:
        return entries[0] if entries else None
    full = [entry for entry in entries if entry.layer_type == "full_attention"]
    if not full:
        raise ValueError(
            f"{path} has an entry for each of {', '.join(map(str, part.raw[key]))}, and none for "
            "full_attention, so it is not said which to read"
        )
    return full[0]


def _numbers(path: Path, content: str) -> list[str]:
    """The numbers of a list, one a line or with commas between them; a heading is left out."""
    found = [part for part in re.split(r"[\s,;]+", content) if part]
    numbers = [part for part in found if _is_number(part)]
    if not numbers or len(found) - len(numbers) > 1:
        raise ValueError(f"{path} is no list of factors, one for each pair of dimensions")
    return numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _recipe(path: Path, kind: str, said: dict[str, Any]) -> tuple[str, list[str]]:
    """LLaMA-Factory names a method, and the length of its training samples is the target."""
    length = said.get("cutoff_len") or said.get("model_max_length")
    if kind not in ("linear", "dynamic", "yarn", "llama3"):
        raise ValueError(
            f"{path} has rope_scaling {kind[:60]!r}; known: linear, dynamic, yarn, llama3"
        )
    if not isinstance(length, int):
        raise ValueError(f"{path} has rope_scaling and no cutoff_len to work its factor out from")
    return kind, [f"length={length}"]
