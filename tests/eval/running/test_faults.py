"""What goes wrong while a run works: a full disk, a folder that cannot be written, bad numbers."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.results import Results
from tests.support.models import tiny_causal, tiny_tokenizer
from tests.support.shell import Shell
from tests.support.tiny_eval import corpus_of, strict_json, tree

TASKS = ("--tasks", "induction", "--depths", "0,1", "--samples", 1)
RUN = ("eval", "tiny", "--data", "texts", "--excerpts", 2, "--lengths", "70,80", "-s", "yarn:4",
       *TASKS)  # fmt: skip


@pytest.fixture
def shell(checkpoint: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setattr("sys.argv", ["ropex", "eval"])
    (shell.folder / "tiny").symlink_to(checkpoint)
    corpus_of(shell.folder / "texts", 100)
    return shell


class Disk:
    """Lets some files be written, and then half of one; its place is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, error: int) -> None:
        self.left, self.error, self.full = itertools.count(room, -1), error, Path()
        for name in ("write_bytes", "write_text"):
            monkeypatch.setattr(Path, name, self._writer(getattr(Path, name)))
        real = Figure.savefig

        def draw(figure: Figure, path: Path, **given: Any) -> None:
            self._take(path, path.touch)
            real(figure, path, **given)

        monkeypatch.setattr(Figure, "savefig", draw)

    def _writer(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(path: Path, content: Any, *args: Any, **given: Any) -> Any:
            self._take(path, lambda: real(path, content[: len(content) // 2], *args, **given))
            return real(path, content, *args, **given)

        return write

    def _take(self, path: Path, half: Callable[[], Any]) -> None:
        if next(self.left) <= 0:
            self.full = path
            half()
            raise OSError(self.error, "No space left on device", str(path))


# First results (2), the table, answers, and what is made of them: text, prompts, results, page.
WRITES = 2 + 2 * 2 + 2 * 2 + 1 + 1 + 2 + 1 + 1


@pytest.fixture(scope="module")
def whole() -> dict[str, dict[str, bytes | None]]:
    """What a run leaves that nothing disturbed, once there is one."""
    return {}


@pytest.mark.parametrize("room", range(WRITES))
def test_full_disk_is_one_sentence_and_the_run_goes_on_where_it_was(
    shell: Shell, whole: dict[str, dict[str, bytes | None]], room: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        disk = Disk(patched, room, errno.ENOSPC)
        status, _, err = shell(*RUN, "-o", "out")
        after = tree(shell.folder / "out")
        assert not [name for name in after if ".tmp" in name]
        assert status == 2
        told = err.splitlines()[-1]
        assert told.startswith("ropex: error: [Errno 28] No space left on device: ")
        assert err.count("error") == 1
        assert disk.full.name in told
        assert shell(*RUN, "-o", "out")[0] == 2
    kept = {name: each for name, each in after.items() if each is not None}
    assert kept.items() <= tree(shell.folder / "out").items()  # nothing is lost by trying again
    shell.done(*RUN, "-o", "out")
    if not whole:
        shell.done(*RUN, "-o", "whole")
        whole["files"] = tree(shell.folder / "whole")
    assert tree(shell.folder / "out") == whole["files"]


def test_every_file_of_a_run_was_among_those(shell: Shell) -> None:
    with pytest.MonkeyPatch.context() as patched:
        disk = Disk(patched, WRITES, errno.ENOSPC)
        shell.done(*RUN, "-o", "out")
    assert next(disk.left) == 0


@pytest.mark.parametrize("name", ["book/out", "book"])
def test_folder_that_cannot_be_made_is_told_before_the_weights_are_loaded(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (shell.folder / "book").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(
        "ropex.checkpoints.loading.load_model", lambda *args, **given: pytest.fail("loaded")
    )
    assert shell.refused(*RUN, "-o", name) == "ropex: error: book is a file; give a folder\n"


def test_folder_that_may_not_be_written_is_told_and_stays(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.done(*RUN, "-o", "out")
    before = tree(shell.folder)
    Disk(monkeypatch, 0, errno.EACCES)
    status, _, err = shell(*RUN, "-o", "out", "-s", "linear:4")
    assert status == 2
    assert err.splitlines()[-1].startswith("ropex: error: [Errno 13]")
    assert {n: c for n, c in tree(shell.folder).items() if "locks" not in n} == before


def test_evaluator_that_is_not_measured_is_told_before_any_work(shell: Shell) -> None:
    asked = (*RUN, "--definitions", "longppl", "-o", "out")
    told = shell.refused(*asked, "--evaluator", "linear:4")
    assert "longppl goes by linear:4, which is not measured; add -s linear:4" in told
    assert "unknown strategy 'lineal'" in shell.refused(*asked, "--evaluator", "lineal:4")
    shell.done(*asked, "--evaluator", "yarn:factor=4")  # yarn:4, as it is measured
    assert Results.load(shell.folder / "out").protocol.evaluator == "yarn:4"


# Numbers that are none.


def with_bad_weights(folder: Path, value: float, place: str) -> None:
    model = tiny_causal()
    with torch.no_grad():
        if place == "head":
            model.lm_head.weight[7] = value
        else:  # what one letter becomes
            model.model.embed_tokens.weight[tiny_tokenizer()("g")["input_ids"][-1]] = value
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["head", "letter"])
def test_weights_that_are_no_numbers_give_warnings_and_files_that_can_be_read(
    shell: Shell, value: float, place: str
) -> None:
    with_bad_weights(shell.folder / "bad", value, place)
    arguments = ["bad" if each == "tiny" else each for each in RUN]
    told = shell.done(*arguments, "-o", "out")
    strict_json((shell.folder / "out" / "results.json").read_text(encoding="utf-8"))
    results = Results.load(shell.folder / "out")
    assert any("some losses are not finite" in text for text in results.about["warnings"])
    assert all(0 <= row.accuracy <= 1 for row in results.retrieval)
    shell.done(*arguments, "-o", "out")
    for verb in (("report", "out"), ("compare", "out", "out", "-o", "page")):
        shell.done(*verb)
    for form in ("markdown", "latex", "csv"):
        shell.done("report", "out", "--format", form)
    strict_json(shell.done("report", "out", "--definitions", "local", "--format", "json"))
    assert "none" in told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_logit_that_is_no_number_is_told(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    real, turn = Scorer._logits, itertools.count()

    def broken(self: Scorer, states: torch.Tensor) -> torch.Tensor:
        found = real(self, states)
        if next(turn) == 0:
            found[-1, 5] = value
        return found

    monkeypatch.setattr(Scorer, "_logits", broken)
    shell.done(*RUN, "-o", "out")
    content = strict_json((shell.folder / "out" / "results.json").read_text(encoding="utf-8"))
    bad = {row["strategy"] for row in content["results"] if row["nll"] in ("nan", "inf")}
    harmless = value < 0  # a token that is never given
    assert bad == (set() if harmless else {"none"})
    warned = [text for text in content["about"]["warnings"] if "not finite" in text]
    assert [text.split(":")[0] for text in warned] == sorted(bad)
    fixed = [row for row in content["results"] if row["definition"] == "fixed"]
    beaten = {row["length"] for row in fixed if row["nll"] in ("nan", "inf")}
    assert bool(beaten) != harmless
    won = [row["length"] for row in content["winners"]]  # of two, both with numbers
    assert won == [row["length"] for row in fixed[: len(fixed) // 2] if row["length"] not in beaten]
