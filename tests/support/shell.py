"""The command line as a user of a folder sees it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ropex.cli import main
from tests.support.tiny_eval import tree


@dataclass(frozen=True)
class Shell:
    """Runs commands in a folder.

    Attributes:
        folder: The working directory.
        capture: What they print goes there.
    """

    folder: Path
    capture: pytest.CaptureFixture[str]

    @classmethod
    def at(
        cls, folder: Path, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> Shell:
        """A shell in `folder`, until the test ends."""
        monkeypatch.chdir(folder)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # verbs replace it
        return cls(folder, capture)

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        self.capture.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            status = left.code if isinstance(left.code, int) else 1
        return (status, *self.capture.readouterr())

    def done(self, *arguments: object) -> str:
        """The stdout of a command that must succeed."""
        status, out, err = self(*arguments)
        assert status == 0, err
        return out

    def refused(self, *arguments: object) -> str:
        """The one line with which a command is refused; it changes no file."""
        before = tree(self.folder)
        status, out, err = self(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("ropex")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert "error: " in err
        assert tree(self.folder) == before
        return err

    def eval(self, *arguments: object, model: str = "tiny") -> tuple[int, str, str]:
        """A small evaluation in a folder with a model; later arguments win."""
        return self("eval", model, *SMALL, *arguments)


SMALL = ("--lengths", "8,48", "--excerpts", "2", "--data", "book.txt", "-o", "out")


def change_config(folder: Path, **changes: Any) -> None:
    """Write values into a config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        config[key] = value
        if value is None:
            del config[key]
    path.write_text(json.dumps(config), encoding="utf-8")


def write(path: str, content: str | bytes) -> str:
    """Write a file and the folders above it."""
    raw = content.encode() if isinstance(content, str) else content
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(raw)
    return path


def evaluation(*arguments: str) -> Callable[[], list[str]]:
    """A command that needs no preparation."""
    small = ["eval", "tiny", "--lengths", "8,48", "--data", "book.txt", "-o", "out"]
    return lambda: [*small, *arguments]


def with_config(command: Callable[[], list[str]], **changes: Any) -> Callable[[], list[str]]:
    """A command on a model whose config.json says something else."""

    def prepare() -> list[str]:
        change_config(Path("tiny"), **changes)
        return command()

    return prepare
