"""Families whose layers have rotary embeddings of several kinds, as transformers 5 reads them."""

from __future__ import annotations

# Beside the entries of their layer types, one for all is ignored. Of each: the base of the layers
# with a window where a config has none; None where they have that of the others.
LOCAL_BASE = {
    "gemma3_text": 1e4,
    "gemma3n_text": 1e4,
    "t5gemma2_text": 1e4,
    "t5gemma2_decoder": 1e4,
    "olmo3": None,
}
# No model is built from one entry for all.
_STOPPING = (
    "diffusion_gemma_text", "embedding_gemma2_text", "gemma4_text", "gemma4_unified_text", "laguna",
    "lfm3", "mellum", "mimo_v2_flash", "modernbert", "modernbert-decoder", "neomme", "ultrabert",
)  # fmt: skip


def by_layer(model_type: str) -> bool:
    """Whether a family has an entry for each layer type, and takes no other."""
    return model_type in LOCAL_BASE or model_type in _STOPPING
