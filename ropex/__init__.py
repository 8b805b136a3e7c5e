"""Make Hugging Face models read further than they were trained to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ropex.errors import UnsupportedModel as UnsupportedModel
    from ropex.models import rope_of as rope_of
    from ropex.patching import Patch as Patch
    from ropex.patching import patch as patch
    from ropex.registry import list_strategies as list_strategies
    from ropex.registry import strategy as strategy
    from ropex.rope import Plan as Plan
    from ropex.rope import Rope as Rope
    from ropex.storage import load as load
    from ropex.storage import save as save
    from ropex.strategies.base import Strategy as Strategy

_HOMES = {
    "UnsupportedModel": "errors",
    "rope_of": "models",
    "Patch": "patching",
    "patch": "patching",
    "list_strategies": "registry",
    "strategy": "registry",
    "Plan": "rope",
    "Rope": "rope",
    "Strategy": "strategies.base",
    "load": "storage",
    "save": "storage",
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
