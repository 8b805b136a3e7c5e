"""Locks on folders, which end with the process that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NAME = ".lock"
"""A file lock that is never removed, so that all who wait for it wait for the same file."""


@contextmanager
def locked(folder: Path, seconds: float = 0) -> Iterator[None]:
    """Hold the lock of a folder.

    Args:
        folder: The folder, which exists.
        seconds: How long to wait for another process.

    Raises:
        FileExistsError: Another process holds it.
        OSError: The file system has no locks.
    """
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise FileExistsError(f"another run is at work in {folder}; write elsewhere (-o)") from None
    except NotImplementedError:
        raise OSError(
            f"the file system of {folder} has no locks (flock), and without them two runs could "
            "write there at once; write to one that has (-o)"
        ) from None
    try:
        yield
    finally:
        lock.release()
