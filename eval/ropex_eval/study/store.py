"""The stored table: what was measured, found again by what it is and not by where it came from.

A file holds the passes that ran side by side: the tokens that were read, and the negative
log-likelihoods. Whether it answers a question is decided by comparing the tokens themselves, the
rotation, and all else that decides a number, so nothing stale can be used, and a longer pass serves
for a shorter one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ropex.files.writing import atomically
from ropex_eval.study.passes import Pass, Stretches

_FORMAT = "ropex nll 2"
_HEAD = 2  # tokens by which stored passes are looked up, before all are compared


@dataclass(frozen=True, eq=False)
class Stored:
    """A pass that was measured.

    Attributes:
        ids: What was read, and the token after it if that was scored.
        length: Tokens that were read.
        rows: Positions whose next token was scored.
        nll: In nats, `(scored,)`, float32.
        path: Its file.
    """

    ids: Tensor
    length: int
    rows: Stretches
    nll: Tensor
    path: Path

    def holds(self, ids: Tensor, length: int, rows: Stretches) -> bool:
        """Whether it says all that a pass would."""
        return (
            self.length >= length
            and torch.equal(self.ids[: len(ids)], ids)
            and all(any(a <= first and last <= b for a, b in self.rows) for first, last in rows)
        )

    def at(self, first: int, last: int) -> Tensor:
        """NLL of the tokens after positions `first` to `last - 1`."""
        offset = 0
        for begin, end in self.rows:
            if begin <= first and last <= end:
                return self.nll[offset + first - begin : offset + last - begin]
            offset += end - begin
        raise KeyError(f"positions {first} to {last} were not scored")


class Store:
    """The measured passes of a run's folder.

    Args:
        folder: Where the files are; it need not exist.
        tell: Called with a sentence for each file that is damaged; it counts as not there.
    """

    def __init__(self, folder: Path, tell: Callable[[str], None] = lambda text: None) -> None:
        self.folder, self.tell = folder, tell
        self._by_head: dict[tuple[str, tuple[int, ...]], list[Stored]] = {}
        self._taken: set[Path] = set()
        self._damaged: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in what was written since, by this process or another."""
        for path in sorted(self.folder.glob("*.safetensors")):
            self.take(path)

    def take(self, path: Path) -> bool:
        """Take in one file; whether it is there, and whole."""
        if path in self._taken:
            return True
        if not path.is_file():
            return False
        try:
            key, found = _read(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            if path not in self._damaged:
                reason = str(error).splitlines()[0]
                self.tell(f"{path} is damaged, and what it held is measured again ({reason})")
            self._damaged.add(path)
            return False
        self._taken.add(path)
        for each in found:
            candidates = self._by_head.setdefault((key, _head(each.ids)), [])
            candidates.append(each)
            candidates.sort(key=_rank)
        return True

    def path(self, key: str, batch: Sequence[Pass], ids: Sequence[Tensor]) -> Path:
        """Where passes that run side by side are kept; the same in every process."""
        digest = hashlib.sha256(f"{key} {batch[0].length} {batch[0].rows}".encode())
        for each in ids:
            digest.update(each.to(torch.int32).numpy().tobytes())
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"

    def find(self, key: str, ids: Tensor, length: int, rows: Stretches) -> Stored | None:
        """A stored pass that says what a pass of these tokens would, or None.

        Args:
            key: Everything but the tokens that decides the numbers.
            ids: What is read, and the token after it if that is scored.
            length: Tokens that are read.
            rows: Positions whose next token is scored.
        """
        candidates = self._by_head.get((key, _head(ids)), ())
        return next((each for each in candidates if each.holds(ids, length, rows)), None)

    def put(self, key: str, batch: Sequence[Pass], ids: Sequence[Tensor], nll: Tensor) -> None:
        """Write passes that ran side by side: complete, or not at all.

        Args:
            key: Everything but the tokens that decides the numbers.
            batch: The passes, alike in length and rows.
            ids: What each of them read.
            nll: What came of it, `(passes, scored)`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"ids": torch.stack(list(ids)).to(torch.int32), "nll": nll.contiguous()}
        about = {"format": _FORMAT, "key": key, "length": batch[0].length, "rows": batch[0].rows}
        about["sha256"] = _digest(tensors, about)
        path = self.path(key, batch, ids)
        with atomically(path) as temporary:
            temporary.write_bytes(serialise(tensors, {"ropex": json.dumps(about)}))
        self._taken.discard(path)
        self.take(path)


def _read(path: Path) -> tuple[str, list[Stored]]:
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {})["ropex"])
        if about["format"] != _FORMAT:
            raise ValueError(f"its format is {about['format']}")
        tensors = {name: file.get_tensor(name) for name in ("ids", "nll")}
    if _digest(tensors, about) != about["sha256"]:
        raise ValueError("its bytes are not those that were written")
    rows = tuple((first, last) for first, last in about["rows"])
    pairs = zip(tensors["ids"], tensors["nll"], strict=True)
    return about["key"], [Stored(ids, about["length"], rows, nll, path) for ids, nll in pairs]


def _head(ids: Tensor) -> tuple[int, ...]:
    return tuple(ids[:_HEAD].tolist())


def _rank(stored: Stored) -> tuple[int, int, str]:
    """Longer passes first, and a fixed order: a folder gives the same numbers at every start."""
    return -stored.length, -len(stored.nll), stored.path.name


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    decisive = [about[name] for name in ("format", "key", "length", "rows")]
    digest = hashlib.sha256(json.dumps(decisive).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
