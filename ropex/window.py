"""Sliding windows of attention, which hide what a longer context brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ropex.sites.base import Site


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


def windowed(site: Site, trained_length: int | None = None) -> bool:
    """Whether a table is used only by layers whose window is within the trained length.

    They never see a distance that they were not trained at, so a strategy leaves them alone.
    """
    config = site.config
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    trained = trained_length or getattr(config, "max_position_embeddings", None)
    if not window or not trained or window > trained:
        return False
    bases = getattr(config, "layer_rope_theta", None)
    if bases:  # Granite: a module for each base
        mine = zip(bases, config.layer_types, strict=True)
        kinds = {kind for base, kind in mine if base == config.rope_parameters["rope_theta"]}
        return kinds == {"sliding_attention"}
    label = site.layer_type or site.name.rsplit(".", 1)[-1]
    return "sliding" in label or "local" in label
