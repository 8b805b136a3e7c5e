"""Real processes: killed at any moment and started again, or several on one folder."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from tiny_eval import save_checkpoint, tree, words

from ropex.cli import main

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("ROPEX_KILLS", "3"))
"""How often a run is killed; each costs a start of Python."""

ARGUMENTS = ("eval", "tiny", "--data", "book.txt", "-s", "dynamic", "-s", "yarn:4", "-o", "out",
             "--lengths", "8..96:8", "--excerpts", "12")  # fmt: skip
STARTED = """
import os, sys, time
from pathlib import Path
from ropex.cli import main
from ropex_eval.measure import Reader
from ropex_eval.work import Worker

log = Path(f"log-{sys.argv.pop(1)}")
read, made = Reader.read, Worker.__init__

def slow(self, *given):
    log.touch()
    while len(list(Path().glob("log-*"))) < 2:
        time.sleep(0.01)
    time.sleep(0.02)
    return read(self, *given)

def watched(self, *given):
    made(self, *given)
    told = self.done
    def done(strategy, batch):
        with log.open("a") as file:
            print(strategy, batch, file=file)
        told(strategy, batch)
    self.done = done

Reader.read, Worker.__init__ = slow, watched
sys.exit(main(sys.argv[1:]))
"""


def begin(folder: Path, *start: str) -> subprocess.Popen[str]:
    """Start `ropex eval` in a folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "eval")])
    return subprocess.Popen(
        [sys.executable, *(start or ("-m", "ropex")), *ARGUMENTS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def complete(folder: Path) -> None:
    """Run the same command in this process, to its end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["ropex", *ARGUMENTS])
        patched.setattr(warnings, "formatwarning", warnings.formatwarning)
        assert main(ARGUMENTS) == 0


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a process that must succeed, and return what it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def stored(folder: Path) -> dict[str, bytes | None]:
    """The stored table; a killed process may leave a part of a file, under another name."""
    files = tree(folder / "out" / "nll").items()
    return {name: content for name, content in files if not name.endswith(".tmp")}


def written(folder: Path) -> dict[str, bytes]:
    names = ("results.json", "results.csv", "excerpts.safetensors")
    return {name: (folder / "out" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    save_checkpoint(folder / "tiny")
    for name in ("whole", "killed", "two"):
        (folder / name).mkdir()
        (folder / name / "tiny").symlink_to(folder / "tiny")
        (folder / name / "book.txt").write_text(words(1200), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that nothing disturbed."""
    complete(place / "whole")
    assert len(stored(place / "whole")) > 30
    return place / "whole"


def kill_once_written(folder: Path, files: int, delay: float) -> None:
    """Kill a run some time after it has so many files, or let it end if it is faster."""
    process = begin(folder)
    while process.poll() is None and len(list(folder.glob("out/nll/*.safetensors"))) < files:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()


def test_run_that_is_killed_and_started_again_equals_one_that_was_not(
    place: Path, whole: Path
) -> None:
    draw, folder = random.Random(0), place / "killed"
    total, counts = len(stored(whole)), []
    for files in sorted(draw.sample(range(1, total), min(KILLS, total - 1))):
        kill_once_written(folder, files, draw.choice([0.0, 0.0, draw.random() / 20]))
        counts.append(len(stored(folder)))
    assert counts == sorted(counts)
    assert 0 < counts[0] < total  # so that something was left to do
    complete(folder)
    assert stored(folder) == stored(whole)
    assert written(folder) == written(whole)


def test_two_processes_share_the_work_and_give_the_same_bytes(place: Path, whole: Path) -> None:
    folder = place / "two"
    both = [begin(folder, "-c", STARTED, name) for name in "ab"]
    tables = [end(process) for process in both]
    assert tables[0] == tables[1]
    assert written(folder) == written(whole)
    assert stored(whole).items() <= stored(folder).items()
    batches = [(folder / f"log-{name}").read_text(encoding="utf-8").splitlines() for name in "ab"]
    assert all(batches)
    assert max(Counter(batches[0] + batches[1]).values()) == 1  # nothing was done twice
    assert not (folder / "out" / "locks").exists()
