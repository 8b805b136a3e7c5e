"""Where the trained length comes from: it is stated by the caller, or read from the config.

A default of the family, which transformers fills in where config.json does not say, is never taken.
A config object does not tell the two apart, so the file that it came from is looked up. Where that
is silent or out of reach, a value other than the default was set by someone. A config that was made
in Python, and came from no file, is taken as it is: whoever made it has stated it. The default in
code that comes with a checkpoint is taken too, as that checkpoint states it.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn

from ropex.files.untrusted import read_json
from ropex.model.sites.base import Site

_FILE = "config.json"


def require_length(site: Site, given: int | None) -> None:
    """Refuse to guess a trained length.

    Args:
        site: The table.
        given: What the caller states; None if nothing.

    Raises:
        ValueError: Neither the caller nor the config says it.
    """
    if given is not None or stated_length(site) is not None:
        return
    file, family = _file_of(site.origin), site.config.model_type
    guess = f", and the default of {family} would be a guess" if site.said_length() else ""
    raise ValueError(
        f"{file or f'the config of {family}'} does not say the trained length in a number "
        f"(max_position_embeddings){guess}; give --trained-length N (trained_length in Python and "
        "in recipes)"
    )


def stated_length(site: Site) -> int | None:
    """Tokens that a model is made for by its config; None if only a default of its family says."""
    said = site.said_length()
    if not isinstance(said, Integral):  # a text, say, which anybody may have written
        return None
    own_code = type(site.config).__module__.startswith("transformers_modules")
    if own_code or vars(site.module).get("ropex_patches"):  # a patch wrote its own
        return said
    names = _names(site)
    file = _file_of(site.origin)
    from_file = bool(getattr(site.origin, "_name_or_path", ""))
    if not from_file or (file is not None and _says(read_json(file), site.config, names)):
        return said
    return None if _is_default(site.config, names) else said


def origin_of(model: nn.Module) -> Any:
    """The config in a model, or in what wraps one, that knows where it was read; None if none."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((each for each in configs if getattr(each, "_name_or_path", "")), None)


def _names(site: Site) -> set[str]:
    """What the length is called in the config and in its file."""
    known = getattr(site.config, "attribute_map", {})
    return {*site.lengths, *(known.get(name, name) for name in site.lengths)}


def _file_of(origin: Any) -> Path | None:
    """The file that a config was read from; that of the hub if it lies in the usual cache."""
    from huggingface_hub import try_to_load_from_cache

    source = getattr(origin, "_name_or_path", "")
    if not source:
        return None
    place = Path(source)
    found = place if place.is_file() else place / _FILE
    if found.is_file():
        return found
    try:
        revision = getattr(origin, "_commit_hash", None)
        cached = try_to_load_from_cache(source, _FILE, revision=revision)
    except ValueError:  # it is no id of the hub
        return None
    return Path(cached) if isinstance(cached, str) else None


def _is_default(config: Any, names: set[str]) -> bool:
    """Whether all lengths in a config are those of its class."""
    try:
        default = type(config)()
    except Exception:  # it wants arguments, of which the length may be one
        return False
    missing = object()
    return all(getattr(config, n, missing) == getattr(default, n, missing) for n in names)


def _says(raw: dict[str, Any], config: Any, names: set[str]) -> bool:
    parts = (raw, *_parts(raw, config.model_type))
    return any(type(part.get(name)) in (int, float) for part in parts for name in names)


def _parts(raw: dict[str, Any], family: str) -> Iterator[dict[str, Any]]:
    """The parts of a file that describe a model of a family, or of text."""
    for key, value in raw.items():
        if isinstance(value, dict):
            if key == "text_config" or value.get("model_type") == family:
                yield value
            yield from _parts(value, family)
