"""The command line as a user of a folder sees it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

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
        except SystemExit as left:
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
        assert len(err.splitlines()) == 1
        assert tree(self.folder) == before
        return err
