"""A hidden folder to build in, and one step that puts what was built in its place."""

from __future__ import annotations

import ctypes
import glob
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

BUILT = "built"
_CARD = "README.md"
_MARK, _LOCK, _REPLACED = ".ropex-", "lock", "replaced"
_WHOLE = {BUILT, _LOCK, _REPLACED}
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 too
# Weights of a save, in one file or several with an index, and those that take precedence.
_SHARD, _INDEX = r"(-\d{5}-of-\d{5})?", r"(\.index\.json)?"
_SAFE = rf"model{_SHARD}\.safetensors{_INDEX}"
_PICKLED = rf"pytorch_model{_SHARD}\.bin{_INDEX}"
_ADAPTER = r"adapter_model\.(safetensors|bin)"
_EARLIER = {_SAFE: _SAFE, _PICKLED: f"{_PICKLED}|{_SAFE}", _ADAPTER: _ADAPTER}


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to build in, removed after the block.

    Leftovers of a killed run are removed first, and what it had moved away from `out` is put back,
    both with a warning. Folders of runs at work stay.
    """
    clear(out)
    folder, lock = _reserved(out)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def put(built: Path, out: Path) -> None:
    """Move `built` to `out`, and what was there into the workplace, in one step if possible.

    Where it takes two steps, `clear` repairs what a run killed between them leaves.

    Args:
        built: A folder in a `workplace`.
        out: Where it is to be.
    """
    if not os.path.lexists(out):
        os.replace(built, out)
        return
    if _exchanged(built, out):
        return
    aside = built.with_name(_REPLACED)
    try:
        os.replace(out, aside)
        os.replace(built, out)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(out):
            os.replace(aside, out)
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder of the same name to save a model to; its files then replace those there.

    A file that is replaced, or the target of a link, is not written to. Weights of an earlier save
    that programs would read instead of the new ones are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with workplace(folder / "save") as place:
        built = place / BUILT / folder.resolve().name
        built.mkdir(parents=True)
        if (folder / _CARD).is_file():  # peft extends what is there
            shutil.copyfile(folder / _CARD, built / _CARD)
        yield built
        names = [path.relative_to(built) for path in sorted(built.rglob("*")) if path.is_file()]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(built / name, folder / name)
        _remove_earlier(folder, {str(name) for name in names})


def clear(out: Path) -> None:
    """Put back or remove what killed runs left beside `out`."""
    for folder in sorted(out.parent.glob(f".{glob.escape(out.name)}{_MARK}*")):
        if folder.is_symlink() or not {path.name for path in folder.glob("*")} <= _WHOLE:
            continue  # not ours
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except OSError:  # a run is at work there, or it is just gone, or it is not ours
            continue
        said = f"{folder} was left by a run that was stopped; it is removed"
        if os.path.lexists(folder / _REPLACED) and not os.path.lexists(out):
            os.replace(folder / _REPLACED, out)
            said = f"{out} is put back as it was before a run that was stopped while replacing it"
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        warnings.warn(said, stacklevel=2)


def _reserved(out: Path) -> tuple[Path, Any]:
    """A new folder with a lock in it, which marks a run at work."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}{_MARK}"))
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # a different run has taken it for a leftover
            continue
        except BaseException:  # a full disk
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if (folder / _LOCK).exists():
            return folder, lock
        lock.release()


def _exchanged(one: Path, other: Path) -> bool:
    """Swap two paths in one step; if that fails, return False and move nothing."""
    paths = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None)
        if hasattr(library, "renameat2"):
            return bool(library.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0)
        return bool(library.renamex_np(*paths, _EXCHANGE) == 0)
    except (AttributeError, OSError, TypeError):  # an old system, or Windows
        return False


def _remove_earlier(folder: Path, new: set[str]) -> None:
    for saved, earlier in _EARLIER.items():
        if any(re.fullmatch(saved, name) for name in new):
            for path in list(folder.iterdir()):
                if re.fullmatch(earlier, path.name) and path.name not in new:
                    path.unlink()
