"""Load models that bring their own code, written for transformers 4, under 4 and 5 alike.

transformers 5 has dropped what such code asks for, and leaves tensors that a checkpoint does not
hold (tables of cos and sin, for one) as whatever is in memory. Here the model is built by its own
code, as it was meant to, and then gets the weights. Nothing of transformers stays changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MODULES = "transformers_modules"
"""The package under which transformers imports code of checkpoints."""


def load_remote(folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of a checkpoint that holds its own code, in evaluation mode.

    The code in `folder` runs. It may be of Baichuan, InternLM, ChatGLM, Qwen 1 and their kin.

    Args:
        folder: The checkpoint: `config.json` with an `auto_map`, its code, and weights.
        dtype: Of the weights.

    Raises:
        FileNotFoundError: There are no weights.
        ValueError: The config names no code, or weights are missing.
    """
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    folder = Path(folder)
    with as_in_version_4(dtype):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        _drop_default_scaling(config, folder)
        config.torch_dtype = config.dtype = dtype  # by which ChatGLM makes its tables
        model_class: Any = get_class_from_dynamic_module(_code_of(config, folder), str(folder))
        model = model_class(config)
    _load_weights(model, folder)
    for module in model.modules():  # in forward, long after this function
        if hasattr(module, "main_input_name") and not hasattr(module, "get_head_mask"):
            module.get_head_mask = _no_head_mask
    whole = [buffer for buffer in model.buffers() if buffer.dtype != torch.float32]
    for tensor in (*model.parameters(), *whole):  # but tables that the code made in float32
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model.eval()


@contextmanager
def as_in_version_4(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """What the constructors of such models find in transformers 4, for the length of the block."""
    from transformers import PretrainedConfig

    before = torch.get_default_dtype()
    with ExitStack() as undo:
        undo.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(dtype)
        if not hasattr(PretrainedConfig, "max_length"):
            undo.callback(delattr, PretrainedConfig, "max_length")
            setattr(PretrainedConfig, "max_length", 20)  # noqa: B010
        yield


def _drop_default_scaling(config: Any, folder: Path) -> None:
    """Leave `rope_scaling` None, as in version 4, where the file has none (InternLM 2)."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    unscaled = not raw.get("rope_scaling") and not raw.get("rope_parameters")
    if unscaled and hasattr(config, "rope_parameters"):
        config.rope_parameters = None


def has_own_code(config: Any) -> bool:
    """Whether config and model are of code that came with the checkpoint, for transformers 4.

    Quantised weights are left to transformers, which knows how to read them.
    """
    known = getattr(config, "auto_map", None) or {}
    own = type(config).__module__.startswith(MODULES) and "AutoModelForCausalLM" in known
    written = str(getattr(config, "transformers_version", None) or "4")
    older = written.split(".")[0] in ("3", "4")
    return own and older and getattr(config, "quantization_config", None) is None


def _code_of(config: Any, folder: Path) -> str:
    """The class of the causal language model, as `file.Class`."""
    known = getattr(config, "auto_map", None) or {}
    for name in ("AutoModelForCausalLM", "AutoModel", "AutoModelForSeq2SeqLM"):
        if name in known:
            return str(known[name]).rpartition("--")[2]
    raise ValueError(
        f"{folder / 'config.json'} names no code of its own (auto_map); load it plainly"
    )


def _load_weights(model: nn.Module, folder: Path) -> None:
    missing = {name for name, _ in model.named_parameters()}
    for file in _weight_files(folder):
        state = _read(file)
        model.load_state_dict(state, strict=False)
        missing -= state.keys()
    ours: Any = model
    head = ours.get_output_embeddings()
    if head is not None and missing == {n for n, p in model.named_parameters() if p is head.weight}:
        head.weight = ours.get_input_embeddings().weight  # tied in the checkpoint
    elif missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the model's weights: {min(missing)}, ..."
        )


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors, pytorch_model*.bin)")
    return found


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _no_head_mask(head_mask: Any, num_hidden_layers: int, *args: Any, **kwargs: Any) -> Any:
    """Version 4's answer where no heads are masked."""
    if head_mask is not None:
        raise ValueError("a head_mask is not supported under this version of transformers")
    return [None] * num_hidden_layers
