"""Strategies out of files that others have written: configs, lists of factors, recipes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ropex.registry import strategy
from ropex.strategies.base import Strategy


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
    name, _, further = text[1:].partition(":")
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    content = path.read_text(encoding="utf-8-sig")
    kind, given = _described(path, content)
    joined = ",".join([*given, further] if further else given)
    return strategy(f"{kind}:{joined}" if joined else kind)


def _described(path: Path, content: str) -> tuple[str, list[str]]:
    """A strategy's name and the parameters that a file gives."""
    if path.suffix in (".csv", ".txt"):
        return "longrope", [f"long_factor={'/'.join(_numbers(path, content))}"]
    try:
        said = yaml.safe_load(content)  # which reads JSON as well
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither JSON nor YAML ({type(error).__name__})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no settings")
    scaling = said.get("rope_parameters") or said.get("rope_scaling")
    if isinstance(scaling, str):
        return _recipe(path, scaling, said)
    if not isinstance(scaling, dict):
        raise ValueError(f"{path} has neither rope_scaling nor rope_parameters, so nothing to read")
    return from_entry({"rope_theta": said.get("rope_theta"), **scaling}, str(path))


def from_entry(entry: dict[str, Any], where: str = "the entry") -> tuple[str, list[str]]:
    """The name and parameters of the strategy that a rope entry of a config stands for.

    Args:
        entry: In the notation of transformers 4 or 5, or an older one.
        where: For messages.

    Raises:
        ValueError: There is no strategy for its type.
    """
    kind = str(entry.get("rope_type") or entry.get("type") or "default")
    read = _READ.get(kind)
    if read is None:
        raise ValueError(f"{where} has the rope type {kind!r}; known: {', '.join(_READ)}")
    return read(entry)


def _some(entry: dict[str, Any], *names: str, **renamed: str) -> list[str]:
    """Parameters that an entry gives, under the names of the strategy."""
    pairs = [(name, name) for name in names] + list(renamed.items())
    return [
        f"{ours}={_shown(entry[theirs])}" for ours, theirs in pairs if entry.get(theirs) is not None
    ]


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default(entry: dict[str, Any]) -> tuple[str, list[str]]:
    base = entry.get("rope_theta")
    return ("theta", [f"base={_shown(base)}"]) if base else ("none", [])


def _yarn(entry: dict[str, Any]) -> tuple[str, list[str]]:
    given = _some(entry, "factor", "beta_fast", "beta_slow", "truncate")
    if entry.get("attention_factor") is not None:
        return "yarn", [*given, *_some(entry, "attention_factor")]
    if entry.get("mscale") and entry.get("mscale_all_dim"):
        given += _some(entry, "mscale", "mscale_all_dim")
    return "yarn", given


def _llama3(entry: dict[str, Any]) -> tuple[str, list[str]]:
    return "llama3", _some(entry, "factor", alpha="low_freq_factor", beta="high_freq_factor")


def _longrope(entry: dict[str, Any]) -> tuple[str, list[str]]:
    names = ("factor", "long_factor", "short_factor", "attention_factor")
    return "longrope", _some(entry, *names)


_READ: dict[str, Callable[[dict[str, Any]], tuple[str, list[str]]]] = {
    "default": _default,
    "linear": lambda entry: ("linear", _some(entry, "factor")),
    "dynamic": lambda entry: ("dynamic", _some(entry, "factor")),
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}


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
        raise ValueError(f"{path} has rope_scaling {kind!r}; known: linear, dynamic, yarn, llama3")
    if not isinstance(length, int):
        raise ValueError(f"{path} has rope_scaling and no cutoff_len to work its factor out from")
    return kind, [f"length={length}"]
