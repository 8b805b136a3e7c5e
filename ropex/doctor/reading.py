"""Read what the rules look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropex.checkpoints.gguf import Gguf, read_gguf
from ropex.config.values import positive
from ropex.files.untrusted import (
    Tensor,
    absent_tensors,
    check_files,
    is_table,
    loaded_tensors,
    read_json,
    read_tensors,
)

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
RECORD, ADAPTER = "ropex.json", "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, an adapter or a GGUF file, as far as rules look at it.

    Attributes:
        documents: The JSON files that are there, by name.
        tables: Rotary tables in the weights.
        tensors: What the model is loaded from.
        absent: Names of tensors that an index places, and that no file holds.
        pickles: Names of pickles, where there are no safetensors; they are not opened.
        gguf: The metadata of a GGUF file.
        base: The config of an adapter's base model, where that is a folder.
        stated: Tokens that the model was trained at, as a person says.
    """

    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: tuple[Tensor, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    absent: tuple[str, ...] = ()
    pickles: tuple[str, ...] = ()
    gguf: Gguf | None = None
    base: dict[str, Any] | None = None
    stated: int | None = None

    @property
    def target(self) -> int | None:
        """Tokens that the model will reach, by a record of ropex beside it."""
        return self._recorded("target_length")

    @property
    def trained(self) -> int | None:
        """Tokens that it was trained at: as stated, or by a record that its config carries."""
        if self.stated is not None:
            return self.stated
        in_config = self.documents.get(RECORD, {}).get("in_config", True)
        return self._recorded("trained_length") if in_config is True else None

    def _recorded(self, key: str) -> int | None:
        found = positive(self.documents.get(RECORD, {}), key)
        return None if found is None else int(found)


def read(path: Path, *, trained_length: int | None = None) -> Checkpoint:
    """Read a folder, its config.json, or a GGUF file.

    Args:
        path: Where it is.
        trained_length: Tokens that the model was trained at, where no file says it.

    Raises:
        FileNotFoundError: There is no such path, or nothing to look at in the folder.
        ValueError: A file is not what its name says, is too large, or leads out of the folder.
    """
    if path.is_file() and path.suffix.lower() == ".gguf":
        return Checkpoint(gguf=read_gguf(path))
    folder = path.parent if path.name in (CONFIG, ADAPTER) else path
    if not folder.is_dir():
        what = "a folder, a config.json or a .gguf file is read"
        if path.is_file():
            raise ValueError(f"{path} is a different kind of file ({what})")
        raise FileNotFoundError(f"no such folder: {path} ({what})")
    check_files(folder)
    names = (CONFIG, TOKENIZER, RECORD, ADAPTER)
    documents = {name: read_json(folder / name) for name in names if (folder / name).exists()}
    if CONFIG not in documents and ADAPTER not in documents:
        more = next(iter(sorted(folder.glob("*.gguf"))), None)
        hint = f"; name a file, such as {more}" if more else ""
        raise FileNotFoundError(f"{folder} holds no {CONFIG} and no {ADAPTER}{hint}")
    return Checkpoint(
        documents=documents,
        tables=tuple(filter(is_table, read_tensors(folder))),
        tensors=loaded_tensors(folder),
        absent=absent_tensors(folder),
        pickles=_pickles(folder),
        base=_base(folder, documents.get(ADAPTER, {})),
        stated=trained_length,
    )


def _pickles(folder: Path) -> tuple[str, ...]:
    if any(folder.glob("*.safetensors")):  # which every program prefers
        return ()
    return tuple(sorted(found.name for each in _PICKLES for found in folder.glob(each)))


def _base(folder: Path, adapter: dict[str, Any]) -> dict[str, Any] | None:
    """The config of an adapter's base model; None for one of the hub, which is not asked."""
    name = adapter.get("base_model_name_or_path")
    if not isinstance(name, str) or not name or len(name) > 1000 or "\0" in name:
        return None
    found = next((p for p in (Path(name), folder / name) if (p / CONFIG).is_file()), None)
    return None if found is None else read_json(found / CONFIG)
