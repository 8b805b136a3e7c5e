"""What is printed is escaped, so that no text from a file acts on the terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ropex.files.writing import naming

# Control characters but line ends and tabs, those that turn the direction of writing, and halves
# of surrogate pairs, which no terminal can be sent.
_ACTING = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)
STDOUT = "standard output"
_MOVES = re.compile(r"\n*(\x1b\[A)*")  # of progress bars below each other


class Escaping:
    """A stream that writes acting characters as JSON does, by a backslash, u and four digits.

    Args:
        stream: Where the text goes.
        name: What it is, for a message.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, Path(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; a progress bar begins it with a carriage return, and may end it so."""
        if not _MOVES.fullmatch(text):
            start = "\r" if text.startswith("\r") else ""
            end = "\r" if start and text.endswith("\r") and len(text) > 1 else ""
            inner = text[len(start) : len(text) - len(end)]
            text = start + _ACTING.sub(_escaped, inner) + end
        with naming(self._name):
            return int(self._stream.write(text))

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what is held back."""
        with naming(self._name):
            self._stream.flush()


@contextmanager
def escaping() -> Iterator[None]:
    """Let all that is printed in the block go through `Escaping`."""
    before = sys.stdout, sys.stderr
    sys.stdout = Escaping(before[0], STDOUT)
    sys.stderr = Escaping(before[1], "standard error")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def drop_stdout() -> None:
    """Discard what is left to print, where nobody reads it or there is no room."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
