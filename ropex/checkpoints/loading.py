"""Load the model, the tokenizer or the skeleton of a checkpoint, as transformers does."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ropex.checkpoints.find import reason
from ropex.checkpoints.remote_code import as_in_version_4, has_own_code, load_remote
from ropex.config.limits import check_counts
from ropex.config.notations import fold_version_5
from ropex.errors import UnsupportedModel
from ropex.files.untrusted import loaded_tensors, read_json

_ALL_THERE: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}


def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The causal language model of a checkpoint, in evaluation mode.

    Args:
        folder: The checkpoint.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for what the checkpoint holds.
        device_map: How accelerate spreads it over devices, such as `auto`; None for the CPU.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        OSError: There are no weights.
        UnsupportedModel: It is no causal language model.
        ValueError: They are damaged, some are missing, or transformers cannot read them.
    """
    check_counts(folder)
    chosen = dtype if dtype == "auto" else getattr(torch, dtype)
    with _reading(folder):
        model, info = _load(folder, chosen, device_map, trust_remote_code)
    _refuse_misfits(folder, info)
    return model.eval()


def check_fit(folder: Path, model: Any) -> bool:
    """Refuse a checkpoint that lacks weights of its model, or has them in other shapes.

    Args:
        folder: The checkpoint.
        model: What its config builds, with or without weights.

    Returns:
        Whether the weights were looked into: not those of pickles, nor quantised ones.

    Raises:
        ValueError: Weights are missing, or have other shapes.
    """
    held = {each.name: each.shape for each in loaded_tensors(folder)}
    if not held or "quantization_config" in read_json(folder / "config.json"):
        return False
    wanted = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    differ = {name for name, shape in wanted.items() if held.get(name) != shape}
    tied = getattr(model, "_tied_weights_keys", None) or ()
    if differ <= (set(tied) if getattr(model.config, "tie_word_embeddings", False) else set()):
        return True
    remote = type(model).__module__.startswith("transformers_modules")
    try:  # transformers knows which names in files have become others in a model
        _, info = _load(folder, "auto", "meta", remote)
    except Exception:  # of a model that does not load in this way, nothing is known
        return False
    _refuse_misfits(folder, info)
    return True


def _load(folder: Path, dtype: Any, device_map: str | None, trusted: bool) -> tuple[Any, Any]:
    """A model, and what transformers tells of its loading."""
    from transformers import AutoModelForCausalLM

    config = _load_config(folder, trusted)
    if has_own_code(config) and device_map != "meta":
        said = getattr(config, "torch_dtype", None) or torch.float32
        model = load_remote(folder, said if dtype == "auto" else dtype)
        return _spread(model, device_map), _ALL_THERE
    auto: Any = AutoModelForCausalLM
    loaded: tuple[Any, Any] = auto.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trusted,
        ignore_mismatched_sizes=True,  # they are refused, by name
        output_loading_info=True,
    )
    return loaded


def _spread(model: Any, device_map: str | None) -> Any:
    """A model over the devices of a map of accelerate, as transformers spreads one."""
    from accelerate import dispatch_model, infer_auto_device_map

    if device_map is None:
        return model
    if device_map not in ("auto", "balanced", "balanced_low_0", "sequential"):
        return model.to(device_map)
    whole = getattr(model, "_no_split_modules", None) or []
    return dispatch_model(model, infer_auto_device_map(model, no_split_module_classes=whole))


def _refuse_misfits(folder: Path, info: Any) -> None:
    if missing := sorted(info["missing_keys"]):  # transformers would make them up
        raise ValueError(f"{folder} lacks {len(missing)} of the model's weights: {missing[0]}, ...")
    found = info["mismatched_keys"]  # names in transformers 4, names with shapes in 5
    if other := sorted(key if isinstance(key, str) else key[0] for key in found):
        raise ValueError(f"{folder}: {other[0]} has a different shape than config.json asks for")


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: The checkpoint has none.
        ValueError: Its tokenizer.json is damaged, or its limit is no number.
    """
    tokenizer = _read_tokenizer(folder, trust_remote_code)
    limit = tokenizer.model_max_length
    if isinstance(limit, bool) or not isinstance(limit, (int, float)):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'} says model_max_length {str(limit)[:60]!r}; it "
            "must be a number of tokens"
        )
    return tokenizer


def _read_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # of many kinds, by what is missing and by version
        # transformers 4 does not know the class that 5 writes; the file itself is the same.
        if (folder / "tokenizer.json").is_file():
            with _reading(folder):
                return PreTrainedTokenizerFast.from_pretrained(folder)
        raise FileNotFoundError(
            f"{folder} holds no tokenizer that transformers reads ({reason(error)})"
        ) from error


def load_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model of a checkpoint without its weights: enough to read and to plan, at any size.

    Raises:
        UnsupportedModel: It is no causal language model.
        ValueError: transformers cannot make the model that the config describes.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    def build() -> Any:
        config = _load_config(folder, trust_remote_code)
        with as_in_version_4() if has_own_code(config) else nullcontext():
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)

    check_counts(folder)
    with _reading(folder):
        try:
            with init_empty_weights(include_buffers=False):
                return build()
        except RuntimeError as error:
            if "set_data" not in str(error):  # of parameters that are given data as they are made
                raise
        with torch.device("meta"):  # buffers as well; tables are worked out from the config
            return build()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Report whatever transformers raises about a checkpoint in one sentence that names it."""
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError, UnsupportedModel):  # already say enough
        raise
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"the weights in {folder} are damaged: {reason(error)}") from error
    except Exception as error:  # a config can be wrong in as many ways as Python has errors
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder} holds code of its own; --trust-remote-code runs it"
            ) from error
        raise ValueError(
            f"{folder}: transformers cannot read this checkpoint: {reason(error)}"
        ) from error


def _load_config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    raw = read_json(folder / "config.json")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    _require_causal(folder, config, raw)
    fold_version_5(raw, config)
    return config


def _require_causal(folder: Path, config: Any, raw: dict[str, Any]) -> None:
    """Refuse a model that `AutoModelForCausalLM` does not load, and say what can be done."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    own = raw.get("auto_map")
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or (
        isinstance(own, dict) and "AutoModelForCausalLM" in own
    ):
        return
    named = raw.get("architectures") or [None]
    its_class = named[0] if isinstance(named, list) and isinstance(named[0], str) else "its class"
    raise UnsupportedModel(
        f"{folder}: {config.model_type} is no causal language model to transformers "
        "(AutoModelForCausalLM), and the commands read those alone; in Python, load it with "
        f"{its_class}, patch it with ropex.patch(model, ...) and keep it with ropex.save"
    )
