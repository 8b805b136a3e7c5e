"""A checkpoint without its weights, and what its rotary embedding was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_skeleton
from ropex.model.rotary import main_site, sites
from ropex.rope import Rope


def read_skeleton(
    model: str,
    *,
    trained_length: int | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> tuple[Path, Any, Rope]:
    """The folder of a checkpoint, its model without weights, and its rotary embedding.

    Args:
        model: As for `ropex.checkpoints.find.find`.
        trained_length: Tokens that it was trained at, where its config does not say or is wrong.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        weights: As for `ropex.checkpoints.find.find`.

    Raises:
        UnsupportedModel: It has no rotary embedding that ropex can patch.
        ValueError: Neither its config nor the user says the trained length.
    """
    folder = find(model, weights=weights)
    skeleton = load_skeleton(folder, trust_remote_code=trust_remote_code)
    site = main_site(sites(skeleton))  # refused models come first: no length would help them
    return folder, skeleton, site.rope(trained_length)
