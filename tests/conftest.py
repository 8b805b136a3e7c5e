"""What all tests share: no network, one thread a worker, and a worker a core for all tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.support.shell import Shell
    from tests.support.tiny_eval import Watch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded, and that stays true
torch.set_num_threads(1)
_MOST_WORKERS = 8  # each holds torch and transformers


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """All tests run in parallel, named ones in this process; `-n` says otherwise."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    worker = hasattr(config, "workerinput")
    debugged = config.option.usepdb
    if whole and not (worker or debugged) and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = min(_MOST_WORKERS, os.cpu_count() or 1)
        config.option.dist = "worksteal"  # neighbours stay together, and share what they set up


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_precision() -> Iterator[None]:
    """Keep what a training in bfloat16 leaves behind from the next test."""
    name = "ACCELERATE_MIXED_PRECISION"  # set by TrainingArguments of transformers 4
    before = os.environ.get(name)
    yield
    os.environ.pop(name, None)
    if before is not None:
        os.environ[name] = before
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def llama() -> Any:
    from tests.support.models import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="module")
def causal() -> Any:
    """In float64: two ways to a number round differently, and each processor in its own way."""
    from tests.support.models import tiny_causal

    return tiny_causal().double()


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """The command line in an empty folder."""
    from tests.support.shell import Shell

    return Shell.at(tmp_path, capsys, monkeypatch)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The batches that are measured from now on."""
    from tests.support.tiny_eval import watch_measuring

    return watch_measuring(monkeypatch)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny Llama and its tokenizer; nobody changes it."""
    from tests.support.models import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def world(checkpoint: Path, shell: Shell) -> Shell:
    """The command line in a folder with a model and a text."""
    from tests.support.tiny_eval import words

    shutil.copytree(checkpoint, shell.folder / "tiny")
    (shell.folder / "book.txt").write_text(words(200), encoding="utf-8")
    return shell
