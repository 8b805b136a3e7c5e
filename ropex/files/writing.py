"""Write files that appear complete or not at all, and never write through a link."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HALF = ".tmp"


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at the end of the block, or is removed on failure.

    Every process has its own path. What was at `path`, even a link, is replaced and never written
    to.
    """
    temporary = path.with_suffix(f"{path.suffix}.{os.getpid()}{_HALF}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk


def half_written(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """Files that `atomically` had not finished when a run was killed.

    Args:
        folder: Where to look.
        patterns: Of the files that it wrote there, each with a star behind the name's first part.
    """
    return [path for pattern in patterns for path in folder.glob(pattern + _HALF)]


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any], *, sort_keys: bool = False) -> None:
    """Replace a file by an object as JSON; a config is sorted, as transformers writes it."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    write_text(path, text + "\n")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a system error without a file name, as for a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
