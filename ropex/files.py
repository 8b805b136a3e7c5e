"""Write files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end of the block, and is gone if that fails.

    Processes that write the same file have paths of their own.
    """
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk
