"""Load checkpoints, and write patched ones that load without ropex."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ropex.patching import Patch
from ropex.rope_config import both_notations, fold_version_5
from ropex.shipped import demo_checkpoint

_TEMPLATES = "additional_chat_templates"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5")


def find(model: str, *, weights: bool = True) -> Path:
    """Folder of a checkpoint: a folder, `demo` for the one that ropex ships, or a hub id.

    Args:
        model: What the user named.
        weights: Whether a model of the hub is wanted with its weights, or its small files only.

    Raises:
        FileNotFoundError: There is no such folder, and no such model on the hub or in its cache.
    """
    folder = demo_checkpoint() if model == "demo" and not Path(model).exists() else Path(model)
    if not (model and folder.is_dir()):
        if _is_path(model):
            raise FileNotFoundError(f"no such folder: {model!r}")
        try:
            folder = _download(model, weights)
        except Exception as error:  # no network, no such repository, not an id, no permission
            raise FileNotFoundError(
                f"{model!r} is neither a folder nor a model of the hub ({_reason(error)})"
            ) from error
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json, so it is not a checkpoint")
    return folder


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


def load_model(folder: Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> Any:
    """The causal language model of a checkpoint, in evaluation mode.

    Args:
        folder: The checkpoint.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for what the checkpoint holds.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        OSError: There are no weights.
        ValueError: They are damaged, some are missing, or transformers cannot read them.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with _reading(folder):
        model, info = auto.from_pretrained(
            folder,
            config=_load_config(folder, trust_remote_code),
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):  # transformers would make them up
        raise ValueError(f"{folder} lacks {len(missing)} of the model's weights: {missing[0]}, ...")
    found = info["mismatched_keys"]  # names in transformers 4, names with shapes in 5
    if other := sorted(key if isinstance(key, str) else key[0] for key in found):
        raise ValueError(f"{folder}: {other[0]} has another shape than config.json asks for")
    return model.eval()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        FileNotFoundError: The checkpoint has none.
        ValueError: Its tokenizer.json is damaged.
    """
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
        ValueError: transformers cannot make the model that the config describes.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with _reading(folder), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            _load_config(folder, trust_remote_code), trust_remote_code=trust_remote_code
        )


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Tell whatever transformers raises about a checkpoint in one sentence that names it."""
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError):  # not about the content
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
    bare = isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}" if bare or not text else text


def save_patched(folder: Path, patch: Patch, out: Path, *, force: bool = False) -> None:
    """Write the checkpoint in `folder` with the config of a patch, weights untouched.

    Plain `from_pretrained` of transformers 4 and 5 loads it to what the patched model computes.
    Weights are hard links where the file system allows it, copies elsewhere.

    Args:
        folder: The checkpoint; it is only read.
        patch: A patch of its model, which may be a skeleton.
        out: Where to write. It appears complete or not at all.
        force: Replace `out` if it holds a checkpoint already.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or it is not a checkpoint.
        ValueError: No config can say what the strategy does.
    """
    if not patch.in_config:
        raise ValueError(
            f"{patch.strategy} cannot be written into a config that transformers reads alike; "
            "apply it after loading, with ropex.patch"
        )
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    whole, part = raw.get("model_type"), patch.model.config.model_type
    if whole != part:
        raise ValueError(
            f"{folder} is a {whole} model, of which {part} is a part; ropex writes checkpoints of "
            "plain language models"
        )
    _check_out(folder, out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        built = Path(temporary) / "checkpoint"
        built.mkdir()
        for source in _files(folder):
            _carry(source, built / source.relative_to(folder))
        _write_json(built / "config.json", both_notations(raw, patch.model.config))
        _raise_tokenizer_limit(built / "tokenizer_config.json", patch.target_length)
        _check_written(built, patch)
        _put(built, out, Path(temporary) / "replaced")


def _files(folder: Path) -> list[Path]:
    """What belongs to a checkpoint: the files of its folder, and further chat templates.

    Raises:
        FileNotFoundError: There are no weights among them.
    """
    found = [path for path in folder.iterdir() if path.is_file()]
    if not any(path.suffix in _WEIGHTS for path in found):
        raise FileNotFoundError(f"{folder} holds no weights, so there is no checkpoint to write")
    return sorted([*found, *folder.glob(f"{_TEMPLATES}/*.jinja")])


def _check_written(built: Path, patch: Patch) -> None:
    """Raise a ValueError unless the written config builds what the patched model computes."""
    remote = type(patch.model).__module__.startswith("transformers_modules")
    written = load_skeleton(built, trust_remote_code=remote)
    for name, module in written.named_modules():
        ours, theirs = (_numbers(each, patch) for each in (patch.model.get_submodule(name), module))
        if ours != theirs:
            raise ValueError(
                f"{patch.strategy}: transformers builds {name} otherwise from the new config, so "
                "nothing was written; apply the strategy after loading, with ropex.patch"
            )


def _numbers(module: Any, patch: Patch) -> dict[str, Any]:
    """What a module of the model has read from the config, as far as a strategy reaches."""
    numbers = {key: vars(module).get(key) for key in ("attention_scaling", "scaling")}
    if patch.strategy.length_class == "static" and "inv_freq" in module._buffers:
        # A pair that does not turn has an immense divisor in the file, and no phase anywhere.
        numbers["inv_freq"] = (module.inv_freq * (module.inv_freq > 1e-20)).tolist()
    return numbers


def _put(built: Path, out: Path, aside: Path) -> None:
    """Move `built` to `out`, and what was there to `aside`; put it back if that fails."""
    if not out.exists():
        os.replace(built, out)
        return
    os.replace(out, aside)
    try:
        os.replace(built, out)
    except BaseException:
        os.replace(aside, out)
        raise


def _check_out(folder: Path, out: Path, force: bool) -> None:
    source, target = folder.resolve(), out.resolve()
    if source == target or target in source.parents:
        raise FileExistsError(f"{out} holds the checkpoint that is read; write elsewhere")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not force:
            raise FileExistsError(f"{out} exists; --force replaces it")
        if not _is_checkpoint(out):
            raise FileExistsError(f"{out} is not a checkpoint, so it is not replaced")


def _is_checkpoint(out: Path) -> bool:
    """Whether `out` holds a model's config and no folders but the one that ropex carries over."""
    if not (out / "config.json").is_file():
        return False
    if {path.name for path in out.iterdir() if path.is_dir()} - {_TEMPLATES}:
        return False
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    return isinstance(config, dict) and "model_type" in config


def _carry(source: Path, target: Path) -> None:
    """Link a file of weights, copy any other, which a user may want to edit."""
    target.parent.mkdir(exist_ok=True)
    if source.suffix in _WEIGHTS:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def _raise_tokenizer_limit(path: Path, length: int) -> None:
    """Let the tokenizer pass `length` tokens; engines take the smaller of the limits."""
    if not path.is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("model_max_length", length) < length:
        settings["model_max_length"] = length
        _write_json(path, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _load_config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    fold_version_5(raw, config)
    return config
