"""What an inference engine needs to compute a checkpoint as it is.

Example:
    >>> from ropex.engines import export
    >>> export(Path("./llama"), "vllm", "yarn:4").flags
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropex.engines.answer import Exactness as Exactness
    from ropex.engines.answer import Export as Export
    from ropex.engines.facts import ENGINES as ENGINES
    from ropex.engines.gguf_file import write_gguf as write_gguf
    from ropex.engines.judge import export as export
    from ropex.engines.judge import exports as exports
    from ropex.engines.judge import unserved as unserved

_HOMES = {
    "ENGINES": "facts",
    "Exactness": "answer",
    "Export": "answer",
    "export": "judge",
    "exports": "judge",
    "unserved": "judge",
    "write_gguf": "gguf_file",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that the doctor reads facts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ropex.engines' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ropex.engines.{_HOMES[name]}"), name)
