"""Real processes: killed at any moment and started again, or several on one folder."""

from __future__ import annotations

import json
import os
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from ropex.cli import main
from ropex_eval.scores.results import Results
from tests.support.models import save_checkpoint
from tests.support.processes import Begun, begin
from tests.support.tiny_eval import tree, words

KILLS = int(os.environ.get("ROPEX_KILLS", "2"))
"""How often a run is killed."""
STARTS = int(os.environ.get("ROPEX_STARTS", "2"))
"""How often two runs are started at once, on one model and on two."""

ARGUMENTS = ("eval", "tiny", "--data", "book.txt", "-s", "dynamic", "-s", "yarn:4", "-o", "out",
             "--lengths", "8..96:8", "--excerpts", "12")  # fmt: skip
STARTED = """
import os, sys, time
from pathlib import Path
from ropex.cli import main
from ropex_eval.measure.reader import Reader
from ropex_eval.running.work import Worker

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

AT_ONCE = """
import contextlib, io, json, sys, time
from pathlib import Path
from ropex.cli import main

name, model, starts = sys.argv[1:4]
ours = {"alike": "tiny", "apart": model}
found = []
for kind in ours:
    for turn in range(int(starts)):
        Path(f"{kind}-{turn}-{name}").touch()
        while len(list(Path().glob(f"{kind}-{turn}-[ab]"))) < 2:
            time.sleep(0.001)
        out, err = io.StringIO(), io.StringIO()
        sys.argv[1:] = ["eval", ours[kind], "--data", "book.txt", "--lengths", "8,16",
                        "--excerpts", "2", "-s", "linear:2", "-o", f"{kind}-{turn}"]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(sys.argv[1:])
        found.append([kind, turn, status, out.getvalue(), err.getvalue()])
Path(f"{name}.json").write_text(json.dumps(found))
"""


def complete(folder: Path) -> None:
    """Run the same command in this process, to its end."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(sys, "argv", ["ropex", *ARGUMENTS])
        patched.setattr(warnings, "formatwarning", warnings.formatwarning)
        assert main(ARGUMENTS) == 0


def end(process: Begun) -> str:
    """Wait for a process that must succeed, and return what it printed."""
    status, out, err = process.end()
    assert status == 0, err
    return out


def stored(folder: Path) -> dict[str, bytes | None]:
    """The stored table; a killed process may leave a part of a file, under another name."""
    files = tree(folder / "out" / "nll").items()
    return {name: content for name, content in files if name.endswith(".safetensors")}


def written(folder: Path) -> dict[str, bytes]:
    names = ("results.json", "results.csv", "excerpts.safetensors")
    return {name: (folder / "out" / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    save_checkpoint(folder / "tiny")
    save_checkpoint(folder / "other", seed=1)
    for name in ("whole", "killed", "two", "at once"):
        (folder / name).mkdir()
        for model in ("tiny", "other"):
            (folder / name / model).symlink_to(folder / model)
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
    process = begin(folder, *ARGUMENTS)
    while process.runs and len(list(folder.glob("out/nll/*.safetensors"))) < files:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()


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
    assert tree(folder / "out" / "nll") == tree(whole / "out" / "nll")  # and nothing half written
    assert written(folder) == written(whole)


def test_two_processes_share_the_work_and_give_the_same_bytes(place: Path, whole: Path) -> None:
    folder = place / "two"
    both = [begin(folder, name, *ARGUMENTS, code=STARTED) for name in "ab"]
    tables = [end(process) for process in both]
    assert tables[0] == tables[1]
    assert written(folder) == written(whole)
    assert stored(whole).items() <= stored(folder).items()
    batches = [(folder / f"log-{name}").read_text(encoding="utf-8").splitlines() for name in "ab"]
    assert all(batches)
    assert max(Counter(batches[0] + batches[1]).values()) == 1  # nothing was done twice
    assert not (folder / "out" / "locks").exists()


Start = tuple[str, int, int, str, str]
"""Kind and number of a start, its status, and what it printed."""


@pytest.fixture(scope="module")
def pairs(place: Path) -> list[tuple[Start, Start]]:
    """What two processes that start together did, again and again."""
    folder = place / "at once"
    models = {"a": "tiny", "b": "other"}
    both = [begin(folder, name, m, str(STARTS), code=AT_ONCE) for name, m in models.items()]
    for process in both:
        end(process)
    found = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in models)
    return list(zip(*found, strict=True))


def test_models_that_start_together_do_not_replace_each_other(
    place: Path, pairs: list[tuple[Start, Start]]
) -> None:
    apart = [pair for pair in pairs if pair[0][0] == "apart"]
    assert len(apart) == STARTS
    for pair in apart:
        assert sorted(status for _, _, status, _, _ in pair) == [0, 2], pair
        model, won = next((m, s) for m, s in zip(("tiny", "other"), pair, strict=True) if not s[2])
        lost = next(start for start in pair if start[2])
        told = [line for line in lost[4].splitlines() if "warning" not in line]
        assert len(told) == 1
        assert "holds a run of a different model (model.sha256); give another folder" in told[0]
        results = Results.load(place / "at once" / f"apart-{won[1]}")
        assert results.about["model"]["id"] == model
        assert list(results.strategies) == ["none", "linear:2"]
        assert f"{results.results[0].perplexity:.2f}"[:3] in won[3]


def test_one_model_that_is_started_twice_is_measured_by_both(
    place: Path, pairs: list[tuple[Start, Start]]
) -> None:
    alike = [pair for pair in pairs if pair[0][0] == "alike"]
    assert len(alike) == STARTS
    texts = set()
    for pair in alike:
        assert [status for _, _, status, _, _ in pair] == [0, 0], pair
        assert pair[0][3] == pair[1][3]
        out = place / "at once" / f"alike-{pair[0][1]}"
        content = json.loads((out / "results.json").read_text("utf-8").replace(out.name, "out"))
        del content["sha256"]  # of the text with its own name
        texts.add(json.dumps(content))
        left = {path.name for path in out.iterdir() if path.is_dir()}
        assert left == {"nll"}  # no locks, and nobody at work
    assert len(texts) == 1
