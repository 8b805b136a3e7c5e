"""Where the recipes and the demo checkpoint are."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def recipes_dir() -> Path:
    """Folder of the recipes: inside the package once installed, beside it in a checkout."""
    installed = _HERE / "recipes"
    return installed if installed.is_dir() else _HERE.parent / "recipes"


def demo_checkpoint() -> Path:
    """Folder of the small checkpoint that ropex ships."""
    return recipes_dir() / "demo" / "checkpoint"
