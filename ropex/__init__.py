"""Make Hugging Face models read further than they were trained to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ropex.version import __version__ as __version__

if TYPE_CHECKING:
    from ropex.checkpoints.load_save import load as load
    from ropex.checkpoints.load_save import save as save
    from ropex.errors import UnsupportedModel as UnsupportedModel
    from ropex.model.rotary import rope_of as rope_of
    from ropex.patching.handle import Patch as Patch
    from ropex.patching.handle import patch as patch
    from ropex.rope import Plan as Plan
    from ropex.rope import Rope as Rope
    from ropex.strategies.base import Strategy as Strategy
    from ropex.strategies.registry import list_strategies as list_strategies
    from ropex.strategies.registry import strategy as strategy

_HOMES = {
    "UnsupportedModel": "errors",
    "rope_of": "model.rotary",
    "Patch": "patching.handle",
    "patch": "patching.handle",
    "list_strategies": "strategies.registry",
    "strategy": "strategies.registry",
    "Plan": "rope",
    "Rope": "rope",
    "Strategy": "strategies.base",
    "load": "checkpoints.load_save",
    "save": "checkpoints.load_save",
}
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that `import ropex` stays light (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ropex' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ropex.{_HOMES[name]}"), name)
