"""Load and save models and adapters together with the strategy that they are used under."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_model
from ropex.errors import UnsupportedModel, wrong_type
from ropex.files.places import replacing
from ropex.files.untrusted import check_files, read_json
from ropex.files.writing import naming
from ropex.model.configs import is_adapter
from ropex.model.rotary import sites
from ropex.patching.handle import patch
from ropex.patching.record import Record, fingerprint
from ropex.patching.saving import complete_config
from ropex.patching.stack import stack
from ropex.strategies.base import Strategy
from ropex.strategies.registry import strategy as parse_strategy

ADAPTER = "adapter_config.json"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(
    model: str | Path,
    strategy: str | Strategy | None = None,
    *,
    adapter: str | Path | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    trained_length: int | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """A model of transformers under the strategy that it was saved or trained with.

    Args:
        model: A checkpoint's folder or hub id; or the folder of an adapter, whose own config names
            its base.
        strategy: To apply, instead of what the adapter's record says.
        adapter: Folder of a PEFT adapter for the model.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for what the checkpoint holds.
        device_map: How accelerate spreads the model over devices, such as `auto`.
        trained_length: Tokens that the model was trained at, where its config does not say.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        The model in evaluation mode, patched; with an adapter, a PEFT model around it.

    Raises:
        FileNotFoundError: There is no such checkpoint or adapter.
        ValueError: The adapter does not say under which strategy it was trained, or the model's
            tables would not be those that it was trained with.
        TypeError: An argument is of a wrong type.

    Example:
        >>> model = ropex.load("./llama", adapter="./llama-lora-32k")
    """
    _check_path("model", model, "a checkpoint's folder or hub id; ropex.patch takes a loaded model")
    if adapter is not None:
        _check_path("adapter", adapter, "the folder of a PEFT adapter")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}, it must be {' or '.join(map(repr, _DTYPES))}")
    if strategy is not None:
        strategy = parse_strategy(strategy)  # before gigabytes are read
    if adapter is None and (Path(model) / ADAPTER).is_file():
        model, adapter = _base_of(Path(model)), model
    if adapter is not None and not (Path(adapter) / ADAPTER).is_file():
        raise FileNotFoundError(f"{adapter} holds no {ADAPTER}, so it is not an adapter")
    if adapter is not None:
        check_files(Path(adapter))
    folder = find(str(model))
    loaded = load_model(
        folder, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
    )
    if adapter is None:
        record = Record.read(folder)
        kept = record if record and not record.in_config else None
        _apply(loaded, strategy, kept, trained_length)
        return loaded
    record = Record.read(Path(adapter))
    if record is None and strategy is None and Record.read(folder) is None:
        raise ValueError(
            f"{adapter} holds no ropex.json, so it does not say under which strategy it was "
            'trained; give strategy="yarn:4", say, or strategy="none" if it was trained without'
        )
    _apply(loaded, strategy, record, trained_length)
    return _with_adapter(loaded, Path(adapter))


def save(model: Any, folder: str | Path, **options: Any) -> None:
    """Save a patched model or PEFT adapter, with a `ropex.json` that says its strategy.

    A strategy that no config can say is left out of the config, and `ropex.load` applies it; other
    loaders get the model without it, which a `ropex.json` with `in_config: false` says. Files that
    are there are replaced; where one is a link to another file, that one stays as it is.
    `ropex.engines.unserved(folder)` lists the engines that need more than the config.

    Args:
        model: A model of transformers or of PEFT.
        folder: Where to.
        options: Of `save_pretrained`.

    Raises:
        TypeError: The folder is none, or the model.
    """
    _check_path("folder", folder, "a path")
    target = Path(folder)
    record = Record.of(model)
    with replacing(target) as place, _told(target):
        if record is None or record.in_config or is_adapter(model):
            model.save_pretrained(place, **options)
        else:
            with _handle(model).suspended():
                model.save_pretrained(place, **options)
        if options.get("is_main_process", True):
            complete_config(place)
        if record is not None:
            record.write(place)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Tell a full disk as the system does, and not as the safetensors library."""
    try:
        with naming(target):
            yield
    except SafetensorError as error:
        raise OSError(f"{target} could not be written: {error}") from error


def _check_path(name: str, value: Any, wanted: str) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise wrong_type(name, value, wanted)


def _base_of(adapter: Path) -> str:
    base = read_json(adapter / ADAPTER).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{adapter / ADAPTER} does not name its base model; give both")
    return base


def _apply(
    model: Any, strategy: str | Strategy | None, record: Record | None, trained: int | None
) -> None:
    """Patch a loaded model, and check that its tables are those of the record."""
    if strategy is not None:
        patch(model, strategy, trained_length=trained)
        return
    if record is None:
        return
    length = trained or record.trained_length
    for text in record.strategies:
        last = patch(model, text, trained_length=length if text == record.strategies[0] else None)
    found = fingerprint(last.planned)
    if found != record.inv_freq_sha256:
        raise ValueError(
            f"{record.strategy} gives this model other tables than those that ropex.json was "
            "written for; is it the same base model? strategy=... applies it regardless"
        )


def _with_adapter(model: Any, adapter: Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError:
        raise ValueError("an adapter needs peft: pip install peft") from None
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def _handle(model: Any) -> Any:
    handle = stack(sites(model))[-1].handle
    if handle is None:
        raise UnsupportedModel("this is a copy of a patched model; save the model itself")
    return handle
