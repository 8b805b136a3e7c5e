"""Give a folder files of its own: clones where the file system makes them, else copies, or links.

A clone shares its blocks until one side is written to, and takes neither time nor room.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from ropex.files.writing import naming

Pair: TypeAlias = tuple[Path, Path]
"""A file, and where it is to be as well."""

LINKED = (
    "the weights in OUT are hard links, the very files of MODEL under a second name: what writes "
    "into one of them writes into both"
)
_FICLONE = 0x40049409  # of Linux: btrfs, XFS and others
_PIECE = 2**24


def provide(pairs: Sequence[Pair], room: Path, *, link: bool = False, more: int = 0) -> str:
    """Let files appear at second places, in a folder that is there.

    Args:
        pairs: Which, and where.
        room: Folder on whose disk they are to be.
        link: Make hard links, so that what writes into one of both writes into the other.
        more: Bytes that will be written there besides, for which there must be room.

    Returns:
        What they are: `linked`, `cloned` or `copied`.

    Raises:
        OSError: There is no room, or no link can be made; what is there already is the caller's.
    """
    if link:
        for source, target in pairs:
            _link(source, target)
    left = [] if link else [(old, new) for old, new in pairs if not _clone(old, new)]
    total = sum(end - begin for old, _ in left for begin, end in _held(old))
    if total + more:
        _check_room(room, total + more)
    with tqdm(
        total=total, desc="copying weights", unit="B", unit_scale=True, disable=None, leave=False,
        delay=1,
    ) as bar:  # fmt: skip
        for source, target in left:
            with naming(target):
                _copy(source, target, bar.update)
    if left or not pairs:  # of no pairs, all that there is was written anew
        return "copied"
    return "linked" if link else "cloned"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise OSError(
            f"{source} cannot have a second name in {target.parent.parent} ({error.strerror}); "
            "leave out --link"
        ) from None


def _check_room(folder: Path, need: int) -> None:
    """Raise an OSError unless so many bytes can be written to a folder."""
    free = shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            f"{folder} has {_size(free)} free, and the weights need {_size(need)}; write to "
            "another disk, or take hard links (--link) on the disk that MODEL is on"
        )


def _size(count: int) -> str:
    """`128.0 GiB`, or `3.2 MiB`."""
    unit, name = (2**30, "GiB") if count >= 2**30 else (2**20, "MiB")
    return f"{count / unit:.1f} {name}"


def _clone(source: Path, target: Path) -> bool:
    """Clone a file; False, and nothing is there, where that is not possible."""
    try:
        if platform.system() == "Darwin":
            return _clonefile(ctypes.CDLL(None), source, target)
        import fcntl  # not on Windows

        with source.open("rb") as old, target.open("xb") as new:
            fcntl.ioctl(new, _FICLONE, old.fileno())
    except (OSError, ImportError, AttributeError):  # the copy tells what else is wrong
        target.unlink(missing_ok=True)
        return False
    return True


def _clonefile(library: Any, source: Path, target: Path) -> bool:
    """As macOS does it, on APFS."""
    paths = (os.fsencode(source.resolve()), os.fsencode(target))
    return bool(library.clonefile(*paths, 0) == 0)


def _held(path: Path) -> Iterator[tuple[int, int]]:
    """Where a file holds bytes; between are holes, which take no room."""
    with path.open("rb") as file:
        size, start = os.fstat(file.fileno()).st_size, 0
        while start < size:
            try:
                begin = os.lseek(file.fileno(), start, os.SEEK_DATA)
                end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            except AttributeError:  # on Windows
                begin, end = start, size
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    return
                begin, end = start, size
            yield begin, end
            start = end


def _copy(source: Path, target: Path, tell: Callable[[int], Any]) -> None:
    """Copy a file, holes as holes."""
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        new.truncate(os.fstat(old.fileno()).st_size)
        for begin, end in _held(source):
            old.seek(begin)
            new.seek(begin)
            while begin < end:
                piece = memoryview(old.read(min(_PIECE, end - begin)))
                if not piece:
                    raise OSError(f"{source} became shorter while it was copied")
                begin += len(piece)
                tell(len(piece))
                while piece:
                    piece = piece[new.write(piece) :]
