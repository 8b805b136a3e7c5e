"""Find checkpoints, and load their model, tokenizer or skeleton."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ropex.config.limits import check_counts
from ropex.config.notations import fold_version_5
from ropex.errors import UnsupportedModel
from ropex.files.untrusted import check_files, check_weights, loaded_tensors, read_json
from ropex.shipped import demo_checkpoint

_GGUF = (
    "name the folder, with config.json and safetensors, that it was converted from; ropex doctor "
    "reads the metadata of a GGUF file, and ropex export FOLDER --for llama.cpp --gguf FILE -o OUT "
    "writes it with another rotary embedding"
)
_LONGEST_REASON = 400
_ALL_THERE: dict[str, list[str]] = {"missing_keys": [], "mismatched_keys": []}


def find(model: str, *, weights: bool = True) -> Path:
    """Folder of a checkpoint: a folder, `demo` for the one that ropex ships, or a hub id.

    Args:
        model: What the user named.
        weights: Whether a model of the hub is wanted with its weights, or its small files only.

    Raises:
        FileNotFoundError: There is no such folder, and no such model on the hub or in its cache.
        ValueError: It is a file; or its weights are not what their names say.
    """
    folder = local(model)
    if folder is None:
        try:
            folder = _download(model, weights)
        except Exception as error:  # no network, no such repository, not an id, no permission
            raise FileNotFoundError(
                f"{model!r} is neither a folder nor a model of the hub ({_reason(error)})"
            ) from error
    check_files(folder)
    if not (folder / "config.json").is_file():
        files = "gguf" in model.lower() or any(folder.glob("*.gguf"))
        hint = f"; of a GGUF file, {_GGUF}" if files else ""
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a checkpoint{hint}")
    if weights:
        check_weights(folder)
    return folder


def local(model: str) -> Path | None:
    """The folder that `model` names; None if only the hub knows it.

    Raises:
        FileNotFoundError: It can only be a folder, and there is none.
        ValueError: It is a file.
    """
    folder = demo_checkpoint() if model == "demo" and not Path(model).exists() else Path(model)
    if model and folder.is_dir():
        return folder
    _refuse_file(folder, model)
    if _is_path(model):
        raise FileNotFoundError(f"no such folder: {model!r}")
    return None


def _refuse_file(path: Path, model: str) -> None:
    """Say what a file is that is named in place of a folder."""
    gguf = path.suffix.lower() == ".gguf"
    if path.is_file():
        if gguf:
            raise ValueError(f"{model} is a GGUF file, and ropex reads checkpoints: {_GGUF}")
        raise ValueError(f"{model} is a file; name the folder of a checkpoint")
    if gguf:
        raise FileNotFoundError(f"no such file: {model!r}; and {_GGUF}")


def _is_path(model: str) -> bool:
    """Whether `model` can only be a folder: no id of the hub looks like it."""
    return (
        not model
        or model.startswith((".", "~"))
        or model.endswith("/")
        or model.count("/") > 1
        or Path(model).is_absolute()
    )


def _download(model: str, weights: bool) -> Path:
    """A model of the hub, or of its cache: safetensors where it has them, else older weights."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
    if not weights:
        return Path(snapshot_download(model, allow_patterns=small))
    folder = Path(snapshot_download(model, allow_patterns=[*small, "*.safetensors"]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(model, allow_patterns=[*small, "*.bin"]))
    return folder


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
    import torch

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
    import torch
    from transformers import AutoModelForCausalLM

    from ropex.checkpoints.remote_code import has_own_code, load_remote

    config = _load_config(folder, trusted)
    if device_map is None and has_own_code(config):
        said = getattr(config, "torch_dtype", None) or torch.float32
        return load_remote(folder, said if dtype == "auto" else dtype), _ALL_THERE
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
            f"{folder} holds no tokenizer that transformers reads ({_reason(error)})"
        ) from error


def load_skeleton(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The model of a checkpoint without its weights: enough to read and to plan, at any size.

    Raises:
        UnsupportedModel: It is no causal language model.
        ValueError: transformers cannot make the model that the config describes.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    from ropex.checkpoints.remote_code import as_in_version_4, has_own_code

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
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError, UnsupportedModel):  # already say enough
        raise
    except (SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"the weights in {folder} are damaged: {_reason(error)}") from error
    except Exception as error:  # a config can be wrong in as many ways as Python has errors
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{folder} holds code of its own; --trust-remote-code runs it"
            ) from error
        raise ValueError(
            f"{folder}: transformers cannot read this checkpoint: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, with the next where it only announces that one."""
    if isinstance(error, pickle.UnpicklingError):  # goes on with how to run what the file holds
        return str(error).split(". ")[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((index for index, line in enumerate(lines) if not line.endswith(":")), 0)
    text = " ".join(lines[: last + 1])
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."
    bare = isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}" if bare or not text else text


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
