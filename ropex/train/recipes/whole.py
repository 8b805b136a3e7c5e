"""Checkpoints of a training run; only those with correct checksums are resumed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ropex.files.writing import atomically

SUMS = "ropex-checksums.json"
"""In a completely written checkpoint: size and SHA-256 of every other file."""

_OLD = "ropex-whole"  # the empty file that earlier versions wrote instead
_BLOCK = 2**22


def seal(folder: Path) -> None:
    """Mark a checkpoint as complete, after every process has written its part."""
    names = [path.relative_to(folder).as_posix() for path in _files(folder)]
    content = {"files": dict(zip(names, _each(_about, folder, names), strict=True))}
    with atomically(folder / SUMS) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint was written completely; a file may be damaged since."""
    return any((folder / name).is_file() for name in (SUMS, _OLD))


def fault_of(folder: Path) -> str | None:
    """What is wrong with a completely written checkpoint, in words; None if nothing is.

    Every byte is read, unless the size of a file already differs.
    """
    if not (folder / SUMS).is_file():
        return _fault_without_sums(folder)
    try:
        files = json.loads((folder / SUMS).read_text(encoding="utf-8"))["files"]
        wanted = {name: (int(each["bytes"]), str(each["sha256"])) for name, each in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SUMS} is damaged"
    for name, (size, _) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found:,} bytes of {size:,}"
    found_sums = (each["sha256"] for each in _each(_about, folder, list(wanted)))
    pairs = zip(wanted.items(), found_sums, strict=True)
    changed = (name for (name, (_, digest)), now in pairs if digest != now)
    name = next(changed, None)
    return None if name is None else f"{name} is not what was written"


def seal_file(path: Path, at: Path) -> None:
    """Write the checksum of a file, beside the place where the file will be."""
    with atomically(_sum_of(at)) as temporary:
        temporary.write_text(json.dumps(_about(path)) + "\n", encoding="utf-8")


def is_changed(path: Path) -> bool:
    """Whether a file differs from its checksum; files of earlier versions have none."""
    try:
        wanted = json.loads(_sum_of(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return bool(_about(path) != wanted)


def _sum_of(path: Path) -> Path:
    return path.with_suffix(".sum")


def last_whole(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint of a stage to resume from; None if none was written completely.

    Damaged ones after it are renamed, so that no later one takes their place; a half-written one is
    removed.

    Args:
        folder: Of the stage.
        tell: Called with sentences for the user.

    Raises:
        ValueError: Some were written completely, and all of these are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _checkpoints(folder):
        if not is_sealed(path):
            shutil.rmtree(path, ignore_errors=True)
            tell(f"{path} was half written when a run was killed, and is removed")
            continue
        if (fault := fault_of(path)) is None:
            _put_aside(damaged, path, tell)
            if not (path / SUMS).is_file():
                tell(
                    f"{path} is of an earlier version of ropex and has no checksums; training "
                    "continues from it, as all files that this needs are there"
                )
            return path
        damaged.append((path, fault))
    if damaged:
        told = "; ".join(f"{path} is damaged ({fault})" for path, fault in damaged)
        raise ValueError(
            f"{told}; no complete checkpoint is left in {folder}: restore a file, or remove "
            "the folder to train the stage again"
        )
    return None


def newest(folder: Path) -> Path | None:
    """The last checkpoint that was written completely."""
    return next(filter(is_sealed, _checkpoints(folder)), None)


def _put_aside(damaged: list[tuple[Path, str]], instead: Path, tell: Callable[[str], None]) -> None:
    for path, fault in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        tell(
            f"{path} is damaged ({fault}); it is now {aside.name}, and training continues from "
            f"{instead}"
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The last one first."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / SUMS)


def _each(
    function: Callable[[Path], dict[str, Any]], folder: Path, names: list[str]
) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        yield from pool.map(function, [folder / name for name in names])


def _about(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


_NEEDED = {
    "trainer_state.json": ("trainer_state.json",),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
    "model.safetensors": ("*.safetensors", "pytorch_model*", "adapter_model*", "global_step*"),
}
"""Files that resuming needs, by their usual names and by those of FSDP and DeepSpeed."""


def _fault_without_sums(folder: Path) -> str | None:
    for name, places in _NEEDED.items():
        if not any(any(folder.glob(place)) for place in places):
            return f"{name} is missing"
    for path in (p for end in ("pt", "pth", "bin") for p in folder.glob(f"*.{end}")):
        if not zipfile.is_zipfile(path):
            return f"{path.name} is damaged"
    return None
