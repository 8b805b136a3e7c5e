"""Sliding windows of attention, which hide what a longer context brings."""

from __future__ import annotations

from typing import Any


def window_of(config: Any) -> int | None:
    """Tokens that each query sees, if no layer of the model sees more; else None."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ()
    return None if any(kind != "sliding_attention" for kind in layer_types) else window


def lift_window(config: Any) -> None:
    """Let every query see all tokens before it, by changing `config` in place.

    Raises:
        ValueError: There is no such window, or it is built into the layers.
    """
    if window_of(config) is None:
        raise ValueError(f"{config.model_type} has no sliding window over all layers to lift")
    if getattr(config, "layer_types", None):
        raise ValueError(f"the window of {config.model_type} is built into its layers")
    config.sliding_window = None
