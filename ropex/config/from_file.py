"""Strategies out of files that others have written: configs, lists of factors, recipes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy

_LARGEST = 1e30
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
    """Refuse the strategy of a file whose base is another than the model's.

    Args:
        text: As for `read_strategy`.
        base: `rope_theta` of the model that is to be patched.

    Raises:
        ValueError: The file scales another base, so that the result would be another as well.
    """
    if not text.startswith("@"):
        return
    path, _ = _named(text)
    said = {} if path.suffix in _LISTS_OF_FACTORS else _settings(path)
    scaling = said.get("rope_scaling") or said.get("rope_parameters")
    if not isinstance(scaling, dict):
        return
    entry = _entry(path, said, scaling)
    stated = entry["rope_theta"]
    if stated is None or _kind(entry) == "default":
        return
    if isinstance(stated, str) and _is_number(stated):  # YAML takes 1e6 for text
        stated = float(stated)
    if not _sensible(stated):
        raise ValueError(
            f"{path} says rope_theta {str(stated)[:60]!r}; it must be a number above 0"
        )
    if not math.isclose(stated, base):
        raise ValueError(
            f"{path} scales a base (rope_theta) of {stated:g}, and the model has {base:g}; "
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
    scaling = said.get("rope_scaling") or said.get("rope_parameters")
    if isinstance(scaling, str):
        return _recipe(path, scaling, said)
    if not isinstance(scaling, dict):
        raise ValueError(f"{path} has neither rope_scaling nor rope_parameters, so nothing to read")
    return from_entry(_entry(path, said, scaling), str(path))


def _settings(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(_content(path))  # which reads JSON as well
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, thousands of digits
        raise ValueError(f"{path} is neither JSON nor YAML ({type(error).__name__})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{path} holds no settings")
    return said


def _entry(path: Path, said: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    """The one entry of a config, of layers that see the whole context where there are several.

    Both versions of transformers believe `rope_scaling` where both notations are there; what it
    leaves out (in Phi-3, whose config takes few keys) is in the other.
    """
    other = _of_full_attention(path, said.get("rope_parameters") or {})
    entry = _of_full_attention(path, scaling)
    if _kind(entry) == _kind(other):
        entry = {**other, **entry}
    return {"rope_theta": said.get("rope_theta", other.get("rope_theta")), **entry}


def _of_full_attention(path: Path, entries: Any) -> dict[str, Any]:
    if not isinstance(entries, dict):
        return {}
    if not any(isinstance(value, dict) for value in entries.values()):
        return entries
    entry = entries.get("full_attention")
    if not isinstance(entry, dict):
        raise ValueError(
            f"{path} has an entry for each of {', '.join(map(str, entries))}, and none for "
            "full_attention, so it is not said which to read"
        )
    return entry


def _kind(entry: dict[str, Any]) -> str:
    return str(entry.get("rope_type") or entry.get("type") or "default")


def from_entry(entry: dict[str, Any], where: str = "the entry") -> tuple[str, list[str]]:
    """The name and parameters of the strategy that a rope entry of a config stands for.

    Args:
        entry: In the notation of transformers 4 or 5, or an older one.
        where: For messages.

    Raises:
        ValueError: There is no strategy for its type, or for a key of it.
    """
    kind = _kind(entry)
    if kind not in _READ:
        raise ValueError(f"{where} has the rope type {kind[:60]!r}; known: {', '.join(_READ)}")
    read, keys = _READ[kind]
    for key, value in entry.items():
        if value is not None and key not in (*keys, *_OF_THE_MODEL):
            raise ValueError(
                f"{where} says {key} in an entry of the type {kind}, which is not part of it; "
                f"it takes {', '.join(keys) or 'no keys'}"
            )
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
    if (relative := entry.get("attn_factor")) is not None:
        return "yarn", [*given, f"attention_factor={_times_usual(relative, entry.get('factor'))}"]
    if entry.get("mscale") and entry.get("mscale_all_dim"):
        given += _some(entry, "mscale", "mscale_all_dim")
    return "yarn", given


def _times_usual(relative: Any, factor: Any) -> float:
    """What cos and sin are multiplied by where a file says it against YaRN's own, equation 22.

    SGLang and jquesnelle/yarn read `attn_factor` so; transformers does not know it.
    """
    if not (_sensible(relative) and _sensible(factor)):
        given = f"attn_factor is {str(relative)[:60]} and factor {str(factor)[:60]}"
        raise ValueError(f"{given}; give numbers above 0")
    return float(relative * (0.1 * math.log(factor) + 1))


def _sensible(value: Any) -> bool:
    """Whether a value is a number above 0 that can be computed with."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= _LARGEST


def _llama3(entry: dict[str, Any]) -> tuple[str, list[str]]:
    return "llama3", _some(entry, "factor", alpha="low_freq_factor", beta="high_freq_factor")


def _longrope(entry: dict[str, Any]) -> tuple[str, list[str]]:
    given = [entry.get(key) for key in ("short_mscale", "long_mscale")]
    if wrong := [each for each in given if each is not None and not _sensible(each)]:
        raise ValueError(f"an mscale is {str(wrong[0])[:60]!r}; it must be a number above 0")
    scales = set(given) - {None}
    if entry.get("attention_factor") is None and scales:
        if len(scales) > 1:
            raise ValueError("short_mscale and long_mscale differ, and a strategy has one of them")
        entry = {**entry, "attention_factor": scales.pop()}
    names = ("factor", "long_factor", "short_factor", "attention_factor")
    return "longrope", _some(entry, *names)


# Keys that belong to the model, not to a strategy: which pairs rotate, and what it was trained at.
_OF_THE_MODEL = (
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "finetuned",
    "original_max_position_embeddings",
)  # fmt: skip
_MSCALES = ("attention_factor", "mscale", "mscale_all_dim", "attn_factor")
_LISTS = (
    "factor", "long_factor", "short_factor", "attention_factor", "short_mscale", "long_mscale",
)  # fmt: skip
# Of each type: what reads it, and the keys that it reads.
_READ: dict[str, tuple[Callable[[dict[str, Any]], tuple[str, list[str]]], tuple[str, ...]]] = {
    "default": (_default, ()),
    "linear": (lambda entry: ("linear", _some(entry, "factor")), ("factor",)),
    "dynamic": (lambda entry: ("dynamic", _some(entry, "factor")), ("factor",)),
    "yarn": (_yarn, ("factor", "beta_fast", "beta_slow", "truncate", *_MSCALES)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": (_longrope, _LISTS),
    "su": (_longrope, _LISTS),
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
        raise ValueError(
            f"{path} has rope_scaling {kind[:60]!r}; known: linear, dynamic, yarn, llama3"
        )
    if not isinstance(length, int):
        raise ValueError(f"{path} has rope_scaling and no cutoff_len to work its factor out from")
    return kind, [f"length={length}"]
