"""Two processes on one run: each with texts of its own, or both with a part of every text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.running.processes import ALONE, launched
from ropex_eval.scores.results import Results
from ropex_eval.study.store import Store, Stored
from tests.support import processes
from tests.support.models import save_checkpoint, tiny_causal, tiny_tokenizer
from tests.support.paths import ROOT, python
from tests.support.rounding import assert_alike, rounding
from tests.support.shell import Shell
from tests.support.tiny_eval import corpus_of

STRATEGIES = ("linear:4", "yarn:4+logn", "dynamic")
SMALL = ("--data", "texts", "--excerpts", "7", *(p for s in STRATEGIES for p in ("-s", s)))
READ = ("eval", "tiny", *SMALL, "--lengths", "8,47,97")
ASKED = ("eval", "tiny", *SMALL, "--lengths", "96,192", "--samples", "2", "--depths", "0,1")
ASKED = (*ASKED, "--tasks", "induction")
CP = ("--cp", "2")

COMMANDS = {
    "read": (*READ, "-o", "read"),
    "asked": (*ASKED, "-o", "asked"),
    "split": ("eval", "tiny", *SMALL, "--lengths", "8,47", *CP, "-o", "split"),
    "split, longer": (*READ, *CP, "-o", "split"),
    "split, again": (*READ, *CP, "-o", "split"),
    "three": (*READ, "--cp", "3", "-o", "three"),
    "split tasks": (*ASKED, *CP, "-o", "split-tasks"),
    "window": ("eval", "window", *SMALL, "--lengths", "8,47", *CP, "-o", "window-out"),
    "no room": (*READ, *CP, "--max-memory", "1MiB", "-o", "no-room"),
}
SCRIPT = """
import contextlib, io, json, os, sys
from pathlib import Path
from ropex.cli import main

found = {}
for name, arguments in json.loads(Path("commands.json").read_text()).items():
    out, err = io.StringIO(), io.StringIO()
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    found[name] = [status, out.getvalue(), err.getvalue()]
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, texts, and one with a sliding window."""
    folder = tmp_path_factory.mktemp("processes")
    save_checkpoint(folder / "tiny")
    tiny_causal("mistral", sliding_window=16).save_pretrained(folder / "window")
    tiny_tokenizer().save_pretrained(folder / "window")
    corpus_of(folder / "texts", 500)
    return folder


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict[str, tuple[int, str, str]]]:
    """What two processes said to every command, one after the other."""
    (place / "commands.json").write_text(json.dumps(COMMANDS), encoding="utf-8")
    for status, _, err in processes.ranks(place, 2, code=SCRIPT):
        assert status == 0, err
    read = ((place / f"rank-{rank}.json").read_text(encoding="utf-8") for rank in (0, 1))
    return [json.loads(each) for each in read]


@pytest.fixture
def shell(
    place: Path, ranks: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    monkeypatch.setattr(sys, "argv", ["ropex", "one process"])
    return Shell.at(place, capsys, monkeypatch)


def files(folder: Path) -> dict[str, bytes]:
    """What a run is made of, but for the command that asked for it."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".html"
    }
    results = Results.load(folder)
    assert results.about.pop("command").startswith("ropex ")
    return {**found, "results.json": results.to_json().encode()}


@pytest.mark.parametrize("name", ["read", "asked"])
def test_two_processes_write_the_run_of_one_to_the_byte(
    shell: Shell, ranks: Any, name: str
) -> None:
    table = shell.done(*COMMANDS[name][:-1], f"{name}-one")
    one, two = files(shell.folder / f"{name}-one"), files(shell.folder / name)
    # Dynamic shares a plan with no scaling; whoever comes first reads the text for both.
    assert one.items() <= two.items()
    assert all(extra.startswith("nll/") for extra in two.keys() - one.keys())
    assert len(two) - len(one) <= 2
    assert [rank[name][0] for rank in ranks] == [0, 0]
    assert [rank[name][1] for rank in ranks] == [table, ""]  # one of them speaks
    assert not (shell.folder / name / "locks").exists()
    if name == "asked":
        answers = [path for path in two if path.startswith("answers/")]
        assert len(answers) == 4 * 2 * 2  # strategies, lengths, samples


def test_launcher_of_accelerate_starts_the_same_with_the_config_that_ropex_ships(
    shell: Shell,
) -> None:
    table = shell.done(*READ, "-o", "launched-one")
    config = ROOT / "recipes" / "accelerate" / "two-processes-cpu.yaml"
    launch = ("-m", "accelerate.commands.launch", "--config_file", config)
    done = python(*launch, "-m", "ropex", *READ, "-o", "by", cwd=shell.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == table  # of two that do not talk to each other, each would print one
    assert files(shell.folder / "launched-one").items() <= files(shell.folder / "by").items()


# One text over both.


def stored(folder: Path) -> dict[tuple[str, bytes, int, Any], Stored]:
    store = Store(folder / "nll", pytest.fail)
    return {
        (key, each.ids.numpy().tobytes(), each.length, each.rows): each
        for (key, _), found in store._by_head.items()
        for each in found
    }


def test_text_that_is_split_over_processes_gives_the_numbers_of_one(
    shell: Shell, ranks: Any
) -> None:
    for name in ("split", "split, longer", "split, again"):
        assert [rank[name][0] for rank in ranks] == [0, 0], ranks
        assert ranks[1][name][1:] == ["", ""]
    assert ranks[0]["split, longer"][1] == ranks[0]["split, again"][1]
    shell.done(*COMMANDS["split"][:-4], "-o", "split-one")
    shell.done(*READ, "-o", "split-one")
    one, two = stored(shell.folder / "split-one"), stored(shell.folder / "split")
    assert one.keys() == two.keys()
    assert {length for _, _, length, _ in one} == {8, 47, 97}
    for key, each in one.items():
        assert_alike(two[key].nll, each.nll)
    off = max(rounding(each.nll) for each in one.values())
    results = [Results.load(shell.folder / name).results for name in ("split-one", "split")]
    for left, right in zip(*results, strict=True):
        assert right.nll == pytest.approx(left.nll, abs=off)
    assert {row.strategy for row in results[1]} == {"none", *STRATEGIES}


REFUSED = {
    "three": "--cp 3 wants as many processes, and there are 2",
    "split tasks": "--cp splits texts that are read; ask --tasks in a run without it",
    "window": "attends with sliding_window, so a text cannot be split over processes (--cp)",
    "no room": "1 MiB are allowed; give more (--max-memory)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_one_sentence(ranks: Any, name: str) -> None:
    for status, out, err in (rank[name] for rank in ranks):
        assert (status, out) == (2, "")
        assert err.splitlines()[-1].startswith("ropex: error: ")
        assert err.count("error") == 1
        assert REFUSED[name] in err


@pytest.mark.parametrize("count", [None, "1"])
def test_text_is_not_split_without_a_launcher(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, count: str | None
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if count:
        monkeypatch.setenv("WORLD_SIZE", count)
    told = shell.refused(*READ, *CP, "-o", "alone")
    assert "--cp 2 wants as many processes, and there are 1; start it with torchrun" in told
    assert launched() is ALONE


def test_process_alone_waits_for_nobody_and_agrees_with_itself() -> None:
    given: Callable[[], None] = ALONE.wait
    assert given() is None  # type: ignore[func-returns-value]
    assert ALONE.agree([1]) == [1]
    assert (ALONE.first, ALONE.split, ALONE.device) == (True, False, None)
