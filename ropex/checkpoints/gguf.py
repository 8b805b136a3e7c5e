"""The metadata of a GGUF file: a few scalars and the names of tensors, within bounds.

Read here and not with the `gguf` package, which maps whole files and trusts them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# Number types of the format: code, and how Python unpacks it.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_TYPES_OF_TENSORS = {0: "F32", 1: "F16", 30: "BF16"}
_LONGEST_STRING = 16 * 2**20
_MOST = 10_000_000  # of anything that is counted
_SKIPPED = object()


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape, as stored, and its type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file says of its rotary embedding.

    Attributes:
        name: Of the file.
        fields: Scalars and texts of the metadata.
        tensors: Those whose name starts with `rope`.
    """

    name: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def arch(self) -> str:
        """The architecture, which all keys of the model start with."""
        return str(self.fields.get("general.architecture", ""))

    def get(self, key: str) -> Any:
        """The value of a key of the model."""
        return self.fields.get(f"{self.arch}.{key}")


def read_gguf(path: Path) -> Gguf:
    """Read the head of a GGUF file.

    Raises:
        ValueError: It is no GGUF file of version 2 or 3, or it is damaged.
    """
    with path.open("rb") as file:
        return _Reader(file, path).read()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = path.stat().st_size

    def read(self) -> Gguf:
        magic = self.file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{self.path} is not a GGUF file: it starts with {magic!r}")
        version = self.scalar("I")
        if version not in (2, 3):
            raise ValueError(f"{self.path} has version {version} of GGUF; 2 and 3 are read")
        tensors, fields = self.count("Q"), self.count("Q")
        found = dict(self.field() for _ in range(fields))
        named = dict(self.tensor() for _ in range(tensors))
        return Gguf(
            self.path.name,
            {key: value for key, value in found.items() if value is not _SKIPPED},
            {name: tensor for name, tensor in named.items() if name.startswith("rope")},
        )

    def field(self) -> tuple[str, Any]:
        key = self.string()
        return key, self.value(self.scalar("I"))

    def tensor(self) -> tuple[str, Tensor]:
        name = self.string()
        shape = tuple(self.scalar("Q") for _ in range(self.count("I", most=8)))
        code = self.scalar("I")
        self.scalar("Q")  # where the data starts
        return name, Tensor(shape, _TYPES_OF_TENSORS.get(code, f"type {code}"))

    def value(self, code: int, depth: int = 0) -> Any:
        if code in _SCALARS:
            return self.scalar(_SCALARS[code])
        if code == _STRING:
            return self.string()
        if code == _ARRAY and depth < 4:
            self.skip_array(depth)
            return _SKIPPED
        raise self.damaged(f"a value of type {code}")

    def skip_array(self, depth: int) -> None:
        code, count = self.scalar("I"), self.count("Q")
        if code in _SCALARS:
            self.skip(count * struct.calcsize(f"<{_SCALARS[code]}"))
            return
        for _ in range(count):
            if code == _STRING:
                self.skip(self.scalar("Q"))
            else:
                self.value(code, depth + 1)

    def string(self) -> str:
        length = self.count("Q", most=_LONGEST_STRING)
        return self.take(length).decode("utf-8", "replace")

    def count(self, code: str, most: int = _MOST) -> int:
        found = self.scalar(code)
        if found > most:
            raise self.damaged(f"a count of {found:,}")
        return int(found)

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def take(self, length: int) -> bytes:
        found = self.file.read(length)
        if len(found) < length:
            raise self.damaged("its end")
        return found

    def skip(self, length: int) -> None:
        if self.file.tell() + length > self.size:
            raise self.damaged("its end")
        self.file.seek(length, 1)

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path} is damaged: {what} where its metadata should go on")
