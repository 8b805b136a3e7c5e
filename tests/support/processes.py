"""Processes that have imported everything already.

A server imports once and forks; so a process that is killed, or one of several ranks, costs a
moment instead of the seconds in which an interpreter imports torch and transformers.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.support.paths import environment

Ended = tuple[int, str, str]
"""Exit code, stdout and stderr; the code of a process that is killed is minus the signal."""

_SECONDS = 120
_IMPORTED = (
    "datasets", "peft", "pytest", "torch", "transformers.models.llama.modeling_llama",
    "transformers.trainer", "ropex.cli", "ropex.train.recipes.run", "ropex_eval.running.run",
)  # fmt: skip
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Begun:
    """A process that runs.

    Attributes:
        process: Its handle.
        said: A folder with what it prints.
    """

    process: Any
    said: tempfile.TemporaryDirectory[str]

    @property
    def runs(self) -> bool:
        return self.process.exitcode is None

    def kill(self) -> int:
        """Kill it; its exit code."""
        self.process.kill()
        return self.end()[0]

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.join(_SECONDS)
        assert not self.runs, "the process does not end"
        out, err = (Path(self.said.name, name).read_text("utf-8") for name in ("1", "2"))
        self.said.cleanup()
        return self.process.exitcode, out, err


def begin(folder: Path, *arguments: str, code: str = "", **variables: str) -> Begun:
    """Start `ropex` with arguments in a folder, or `code`, which finds them in `sys.argv`."""
    said = tempfile.TemporaryDirectory()
    given = (str(folder), arguments, code, variables, said.name)
    process = _CONTEXT.Process(target=_run, args=given, daemon=True)
    with _environment():
        _CONTEXT.set_forkserver_preload(list(_IMPORTED))
        forkserver.ensure_running()
    process.start()
    return Begun(process, said)


def ranks(folder: Path, count: int, *arguments: str, code: str = "") -> list[Ended]:
    """Run the same in processes with the variables that `torchrun` sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    all_ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    all_ranks |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    begun = [
        begin(folder, *arguments, code=code, RANK=str(rank), LOCAL_RANK=str(rank), **all_ranks)
        for rank in range(count)
    ]
    return [each.end() for each in begun]


@contextmanager
def _environment() -> Iterator[None]:
    """The server takes its variables from this process as it starts."""
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(
    folder: str, arguments: tuple[str, ...], code: str, variables: dict[str, str], said: str
) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    for number in (1, 2):
        os.dup2(os.open(f"{said}/{number}", os.O_CREAT | os.O_WRONLY), number)
    sys.argv = ["ropex", *arguments]
    if code:
        exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
        return
    from ropex.cli import main

    sys.exit(main(list(arguments)))
