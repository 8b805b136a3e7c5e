"""What the tests of the command line share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from ropex.cli import main
from tests.support.tiny_eval import tiny_tokenizer, tree

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class World:
    """What a user has in the working directory."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Exit status, stdout and stderr of a command."""
        self.capture.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            status = left.code if isinstance(left.code, int) else 1
        return (status, *self.capture.readouterr())

    def eval(self, *arguments: str | Path, model: str = "tiny") -> tuple[int, str, str]:
        """A small evaluation; later arguments win."""
        small = ("--lengths", "8,48", "--excerpts", "2", "--data", "book.txt", "-o", "out")
        return self("eval", model, *small, *arguments)

    def refused(self, *arguments: str | Path) -> str:
        """The one line with which a command is refused; it changes no file."""
        before = tree(self.folder)
        status, out, err = self(*arguments)
        assert status == 2
        assert out == ""
        assert err.startswith("ropex")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1
        assert "error: " in err
        assert tree(self.folder) == before
        return err


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with the source roots on its path."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "eval")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def save_gpt2(folder: Path) -> None:
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=300
    )
    auto: Any = AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        config[key] = value
        if value is None:
            del config[key]
    path.write_text(json.dumps(config), encoding="utf-8")


def write(path: str, content: str | bytes) -> str:
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
