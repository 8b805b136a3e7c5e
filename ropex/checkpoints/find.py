"""Find checkpoints: folders, models of the hub, and the one that ropex ships."""

from __future__ import annotations

import pickle
from pathlib import Path

from ropex.files.untrusted import check_files, check_weights
from ropex.shipped import demo_checkpoint

_GGUF = (
    "name the folder, with config.json and safetensors, that it was converted from; ropex doctor "
    "reads the metadata of a GGUF file, and ropex export FOLDER --for llama.cpp --gguf FILE -o OUT "
    "writes it with another rotary embedding"
)
_LONGEST_REASON = 400


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
                f"{model!r} is neither a folder nor a model of the hub ({reason(error)})"
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


def reason(error: Exception) -> str:
    """The first line of an error, with the next where it only announces that one."""
    if isinstance(error, pickle.UnpicklingError):  # goes on with how to run what the file holds
        return str(error).split(". ")[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((index for index, line in enumerate(lines) if not line.endswith(":")), 0)
    text = " ".join(lines[: last + 1])
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."
    bare = isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError))
    return f"{type(error).__name__}: {text}" if bare or not text else text
