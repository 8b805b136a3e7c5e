"""Change attributes of a live model, with the way back written down before each step."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

_MISSING = object()


def set_attribute(module: Any, name: str, value: Any, undo: ExitStack) -> None:
    """Set an attribute of a module, and note how to put back the same object afterwards."""
    places = (vars(module), module._buffers, module._parameters)
    old = next((place[name] for place in places if name in place), _MISSING)

    def restore() -> None:
        if old is _MISSING:
            vars(module).pop(name, None)  # unless it is gone already
            module._buffers.pop(name, None)
        elif isinstance(old, Tensor) and not old.is_meta:
            now = getattr(module, name)  # the model may have moved
            if isinstance(now, Tensor) and not now.is_meta:
                dtype = now.dtype if isinstance(old, nn.Parameter) else old.dtype
                old.data = old.data.to(device=now.device, dtype=dtype)
            setattr(module, name, old)
        else:
            setattr(module, name, old)

    undo.callback(restore)
    setattr(module, name, value)
