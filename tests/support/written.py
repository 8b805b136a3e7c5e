"""Checkpoints that ropex writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ropex
from ropex.checkpoints.loading import load_skeleton
from ropex.checkpoints.write import save_patched


def write(folder: Path, out: Path, text: str = "yarn:4", **options: Any) -> None:
    """Write a patched checkpoint, as `ropex patch` does."""
    with ropex.patch(load_skeleton(folder), text) as patch:
        save_patched(folder, patch, out, **options)


def config_of(folder: Path) -> dict[str, Any]:
    """What its config.json says."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content
