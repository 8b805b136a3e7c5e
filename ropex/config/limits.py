"""How large a model may be by its config: absurd sizes are an error, not a program that hangs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ropex.files.untrusted import read_json

MOST_LAYERS, _MOST_PARTS = 4096, 10**6
_COUNTS = re.compile(
    r"(n|num|moe_num)_(\w+_)?(layers?|blocks|experts|stages)|(\w+_)?(en|de)coder_layers|depth|layers"
)


def check_counts(folder: Path) -> None:
    """Refuse a config that nothing could be built from in a lifetime.

    Raises:
        ValueError: It asks for more layers or experts than any model has.
    """
    if key := _oversized(read_json(folder / "config.json")):
        raise ValueError(
            f"{folder / 'config.json'} asks for more layers or experts than any model has ({key}); "
            f"of layers at most {MOST_LAYERS:,} are built, and of experts {_MOST_PARTS:,} in all"
        )


def _oversized(config: dict[str, Any]) -> str | None:
    """A key of a config, or of a part of it, that asks for too many."""
    layers: dict[str, int] = {}
    experts: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, dict) and (found := _oversized(value)):
            return f"{key}.{found}"
        if type(value) is int and _COUNTS.fullmatch(key):
            (experts if key.endswith("experts") else layers)[key] = value
    deepest, widest = max(layers.values(), default=1), max(experts.values(), default=1)
    if deepest > MOST_LAYERS:
        return max(layers, key=layers.__getitem__)
    if deepest * widest > _MOST_PARTS:
        return max(experts, key=experts.__getitem__)
    return None
