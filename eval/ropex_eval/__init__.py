"""Measure how far models read, in Python: `evaluate` does what `ropex eval` does.

Example:
    >>> import ropex_eval
    >>> results = ropex_eval.evaluate("./llama", ["yarn:4"], lengths=(4096, 16384), data="book.txt")
    >>> print(results.table())
    >>> results.frame().query("definition == 'local'")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropex_eval.api import Evaluation as Evaluation
    from ropex_eval.api import evaluate as evaluate
    from ropex_eval.report.results import Results as Results
    from ropex_eval.training.callback import PerplexityByLength as PerplexityByLength

_HOMES = {
    "Evaluation": "api", "PerplexityByLength": "training.callback", "Results": "report.results",
    "evaluate": "api",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that `import ropex_eval` stays light (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ropex_eval' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ropex_eval.{_HOMES[name]}"), name)
