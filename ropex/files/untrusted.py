"""Read untrusted JSON and headers of safetensors files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_LARGEST_JSON = 64 * 2**20
_DEEPEST = 64
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library itself
_PICKLES = (b"\x80", b"PK\x03\x04")  # a pickle; a zip of them, as torch.save writes
# Indices of shards, by how the names of the shards end.
_INDICES = {".safetensors": "model.safetensors.index.json", ".bin": "pytorch_model.bin.index.json"}
_TABLES = ("inv_freq", "cos_cached", "sin_cached")


# Of safetensors: the bits of one number.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """What a header says about a tensor.

    Attributes:
        file: The file that holds it.
        name: Of the tensor.
        dtype: As safetensors calls it.
        shape: Its sizes.
    """

    file: str
    name: str
    dtype: str
    shape: tuple[int, ...]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: The file holds something else, or more than any config does.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, so it is not read")
    if (size := path.stat().st_size) > _LARGEST_JSON:
        raise ValueError(f"{path} has {size:,} bytes; a file of settings has at most 64 MiB")
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, name: str) -> dict[str, Any]:
    """The object in JSON text; `name` is for the message.

    Raises:
        ValueError: It is not JSON, or not an object.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply to be read") from None
    except ValueError as error:  # with the text in it, in some versions
        reason = str(error).split(";")[0][:100]
        raise ValueError(f"{name} is not JSON that can be read: {reason}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a {type(value).__name__}; it must hold an object, {{...}}")
    if _too_deep(value):
        raise ValueError(f"{name} is nested too deeply to be read")
    return value


def _too_deep(value: Any) -> bool:
    """Whether anything is nested below the `_DEEPEST` level."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def is_table(tensor: Tensor) -> bool:
    """Whether a tensor of the weights is a rotary table."""
    return tensor.name.rsplit(".", 1)[-1].endswith(_TABLES)


def read_tensors(folder: Path) -> tuple[Tensor, ...]:
    """All tensors in the safetensors files of a folder, from the headers alone.

    Raises:
        ValueError: As for `check_weights`.
    """
    _check_indices(folder)
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        for name, about in _header(path).items():
            if name != "__metadata__":
                found.append(Tensor(path.name, name, about["dtype"], tuple(about["shape"])))
    return tuple(found)


def loaded_tensors(folder: Path) -> tuple[Tensor, ...]:
    """The tensors that a model is loaded from: in the files of an index, or in the single file."""
    found, index = read_tensors(folder), folder / _INDICES[".safetensors"]
    single = index.name.removesuffix(".index.json")
    files = {each.file for each in found}
    if single in files:
        files = {single}
    elif index.is_file():
        files = _shards(index)
    return tuple(each for each in found if each.file in files)


def absent_tensors(folder: Path) -> tuple[str, ...]:
    """Names in the index that no file holds."""
    index = folder / _INDICES[".safetensors"]
    if not index.is_file() or not (held := {each.name for each in loaded_tensors(folder)}):
        return ()
    return tuple(sorted(set(read_json(index)["weight_map"]) - held))


def check_weights(folder: Path) -> None:
    """Refuse weights that are not what their names say, before anything reads them.

    Raises:
        ValueError: A file is not safetensors or is truncated, its header describes impossible
            tensors, or an index names a file that is not in the folder.
    """
    read_tensors(folder)


def check_files(folder: Path) -> None:
    """Refuse what would block, or never end: pipes, devices and the like.

    Raises:
        ValueError: There is such a thing in the folder.
    """
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file, so nothing is read from there")


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, so it is not read")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if 2 <= length <= min(_LARGEST_HEADER, size - 8):
            header = parse_json(file.read(length), f"the header of {path}")
            _check_tensors(path, header, size - 8 - length)
            return header
    if start.startswith(_PICKLES):
        raise ValueError(
            f"{path} is a pickle under the name of a safetensors file; a pickle can run code when "
            "it is loaded, so do not load it, and get the weights from where you trust"
        )
    raise ValueError(f"{path} is not a safetensors file: its header would have {length:,} bytes")


def _check_tensors(path: Path, header: dict[str, Any], size: int) -> None:
    """Raise a ValueError unless the tensors of a file follow one another up to its end."""
    about = {name: each for name, each in header.items() if name != "__metadata__"}
    for name, each in about.items():
        if not _is_placed(each):
            raise ValueError(f"the header of {path} does not say where {name[:60]!r} is")
    if (wanted := max((each["data_offsets"][1] for each in about.values()), default=0)) != size:
        raise ValueError(
            f"{path} holds {size:,} bytes of tensors, and its header says {wanted:,}; it is "
            "cut off or damaged, so get it again"
        )
    end = 0
    for name, each in sorted(about.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = each["data_offsets"]
        if reason := _misfit(each) or ("" if begin == end else "overlaps others, or leaves a gap"):
            raise ValueError(f"{path} is damaged, so get it again: {name[:60]!r} {reason}")
        end = stop
    notes = header.get("__metadata__") or {}
    if not isinstance(notes, dict) or not all(isinstance(each, str) for each in notes.values()):
        raise ValueError(f"{path} is damaged, so get it again: its __metadata__ is not all text")


def _is_placed(about: Any) -> bool:
    offsets = about.get("data_offsets") if isinstance(about, dict) else None
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(each) is int and each >= 0 for each in offsets)
    )


def _misfit(about: dict[str, Any]) -> str:
    """Why a header describes no possible tensor; empty if it does."""
    dtype, shape, (begin, end) = about.get("dtype"), about.get("shape"), about["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"has a dtype that safetensors does not know ({str(dtype)[:20]!r})"
    if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
        return "has no shape"
    wanted, rest = divmod(math.prod(shape) * _BITS[dtype], 8)
    if rest or wanted != end - begin:
        return f"has {end - begin:,} bytes, and its shape takes {wanted:,}"
    return ""


def _check_indices(folder: Path) -> None:
    """Raise a ValueError if an index of shards names something that is not in its folder.

    A folder without any weights passes, such as a model of which only the small files were fetched.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()}
    kinds = [kind for kind in _INDICES if any(name.endswith(kind) for name in there)]
    for kind, index in _INDICES.items():
        shards = _shards(folder / index) if (folder / index).exists() else set()
        if kind in kinds[:1] and shards - there:  # safetensors take precedence
            missing = min(shards - there)[:60]
            raise ValueError(f"{folder / index} names the shard {missing!r}, which is not there")


def _shards(path: Path) -> set[str]:
    """The files that an index names; ValueError if one is not beside it."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{path} has no object `weight_map`, so it is not an index of shards")
    for shard in shards.values():
        if not isinstance(shard, str) or not _is_bare(shard):
            raise ValueError(
                f"{path} names the shard {str(shard)[:60]!r}, which is no file beside it; it is "
                "refused"
            )
    return set(shards.values())


def _is_bare(name: str) -> bool:
    """Whether a name stays in its folder, on every system."""
    alone = PurePosixPath(name).name == PureWindowsPath(name).name == name
    return alone and name not in ("", "..")
