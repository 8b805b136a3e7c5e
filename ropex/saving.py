"""What `save_pretrained` of a patched model does."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from ropex.install import set_attribute
from ropex.rope_config import both_notations


def install_saving(
    model: nn.Module, configs: tuple[Any, ...], refused: str | None, undo: ExitStack
) -> None:
    """Let every part of `model` that can be saved write what it computes, or refuse to.

    Args:
        model: The patched model.
        configs: What its rotary modules read.
        refused: The strategy's text, if no config can say what it does.
        undo: Where the way back is written.
    """
    for module in model.modules():
        if not hasattr(module, "save_pretrained"):
            continue
        if refused is not None:
            set_attribute(module, "save_pretrained", RefuseSaving(refused), undo)
        else:
            set_attribute(module, "save_pretrained", SaveBothNotations(module, configs), undo)


class RefuseSaving:
    """Stands in for `save_pretrained` where no config can say what the model computes.

    Args:
        strategy: The strategy's text, for the message.
    """

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Raise a ValueError."""
        raise ValueError(
            f"{self.strategy} cannot be written into a config, so the saved model would compute "
            "something else; save it inside `with patch.suspended():` and patch it after loading"
        )


class SaveBothNotations:
    """`save_pretrained`, whose config transformers 4 and 5 read alike.

    transformers 5 alone writes `rope_parameters`, which 4 ignores without a word.

    Args:
        model: What is saved.
        configs: Those of its configs that a patch has changed.
    """

    def __init__(self, model: Any, configs: tuple[Any, ...]) -> None:
        self.model, self.configs = model, configs

    def __call__(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, then complete the config."""
        type(self.model).save_pretrained(self.model, save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        if kwargs.get("is_main_process", True) and path.is_file():
            raw = json.loads(path.read_text(encoding="utf-8"))
            raw = self._complete(raw, self.model.config)
            path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _complete(self, raw: dict[str, Any], config: Any) -> dict[str, Any]:
        """`raw` with both notations of each patched config, which may be a part of another."""
        parts = {key: part for key, part in vars(config).items() if hasattr(part, "model_type")}
        for key in parts.keys() & raw.keys():
            raw[key] = self._complete(raw[key], parts[key])
        patched = any(config is each for each in self.configs)
        return both_notations(raw, config) if patched else raw
