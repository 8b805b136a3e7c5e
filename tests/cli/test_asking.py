"""`ropex eval --tasks` and `ropex tasks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ropex_eval.scores.results import Results
from ropex_eval.tasks import TASKS
from tests.support.shell import Shell
from tests.support.tiny_eval import corpus_of


@pytest.fixture
def shell(checkpoint: Path, shell: Shell) -> Shell:
    (shell.folder / "tiny").symlink_to(checkpoint)
    corpus_of(shell.folder / "texts", 400)
    return shell


TASK = ("--tasks", "induction", "--depths", "0,1", "--samples", 2)
ASKED = ("eval", "tiny", "--data", "texts", "--excerpts", 3, "--lengths", "72,96", *TASK)


def test_eval_asks_and_prints_what_is_found_and_asks_nothing_twice(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = shell.done(*ASKED, "-s", "yarn:4", "-o", "out")
    found = Results.load(shell.folder / "out").retrieval
    assert [(row.strategy, row.length, row.depth, row.trials) for row in found] == [
        (text, n, depth, 2) for text in ("none", "yarn:4") for n in (72, 96) for depth in (0.0, 1.0)
    ]
    assert "induction" in told
    monkeypatch.setattr(
        "ropex.checkpoints.loading.load_model", lambda *args, **given: pytest.fail("loaded")
    )
    assert shell.done(*ASKED, "-s", "yarn:4", "-o", "out") == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "wild"), "unknown task 'wild'; known: passkey, niah"),
        (("--tasks", "kv"), "kv does not fit into 96 tokens"),
        (("--lengths", "8,16"), "induction does not fit into 16 tokens"),
        (("--depths", "deep"), "'deep' are not depths; write 0,0.5,1"),
        (("--cp", "2"), "--cp 2 wants as many processes"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_any_work(
    shell: Shell, arguments: tuple[str, ...], message: str
) -> None:
    assert message in shell.refused(*ASKED, "-o", "out", *arguments)


def test_lengths_that_a_task_does_not_fit_into_are_left_out_with_a_word(shell: Shell) -> None:
    status, out, err = shell(*ASKED, "--lengths", "8,96", "-s", "none", "-o", "out")
    assert status == 0
    assert "ropex: left out: induction does not fit into 8 tokens" in err
    assert "L =   96" in out.partition("induction: answers found")[2]


def test_tasks_are_listed(shell: Shell) -> None:
    lines = shell.done("tasks").splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    assert all(line.endswith(TASKS[line.split()[0]].help) for line in lines)


@pytest.mark.parametrize("name", ["passkey", "kv", "vt"])
def test_prompt_of_a_task_is_shown_at_its_length(shell: Shell, name: str) -> None:
    shown = shell.done("tasks", name, "tiny", "--length", 400).rstrip("\n")
    prompt, _, answer = shown.rpartition(" [")
    assert prompt.startswith("<s>")
    # One letter is one token; the answer is counted, with the space in front of it.
    letters = len(prompt) - len("<s>") + 1
    assert 0 <= 400 - letters - len(answer[:-1].split(", ")[0]) <= 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wild",), "unknown task 'wild'"),
        (("passkey", "tiny", "--length", "20"), "passkey does not fit into 20 tokens"),
        (("passkey", "nowhere/"), "no such folder"),
    ],
)
def test_prompt_that_cannot_be_shown_is_one_line(
    shell: Shell, arguments: tuple[str, ...], message: str
) -> None:
    assert message in shell.refused("tasks", *arguments)
