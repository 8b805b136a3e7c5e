"""`ropex train` with `evaluate`: numbers are those of `ropex eval`, and the table shows them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ropex.cli import main
from ropex.train.recipes.reading import read_recipe
from ropex.train.recipes.run import train
from ropex_eval.report.terminal import format_perplexity
from ropex_eval.scores.results import Results
from ropex_eval.training.callback import FILE, PerplexityByLength
from ropex_eval.training.trained import UNTOUCHED, Trained, Watch, table
from tests.support.training import Stop, furnish, stop_at

LENGTHS = (24, 32, 96)  # trained at 32
EVALUATE = "evaluate={lengths: [24, 32, 96], data: 'docs.jsonl:text', excerpts: 4, every: 2}"


def silent(line: str) -> None:
    """Tell nobody."""


def run(out: str, *changes: str, tell: Any = silent) -> Path:
    """Train as `ropex train` does it, and measure meanwhile."""
    settings = {"data": "docs.jsonl:text", "lengths": LENGTHS, "excerpts": 4, "tell": silent}
    watch = Watch(Path(out), every=2, bos="auto", **settings)
    train(read_recipe(Path("mine.yaml"), [EVALUATE, *changes]), Path(out), watch, tell=tell)
    return Path(out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts and a run in two stages; nobody changes it."""
    folder = tmp_path_factory.mktemp("trained")
    furnish(folder)
    stages = "stages=[{}, {strategy: 'linear:8', training: {steps: 2}}]"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert main(["train", "mine.yaml", EVALUATE, stages, "-o", "out"]) == 0
    return folder


@pytest.fixture
def there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is measured from now on."""
    seen: list[Any] = []
    real = PerplexityByLength.measure

    def measure(self: PerplexityByLength, model: Any) -> Any:
        seen.append(real(self, model))
        return seen[-1]

    monkeypatch.setattr(PerplexityByLength, "measure", measure)
    return seen


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(model: str, strategy: str, out: Path) -> list[float]:
    """Local perplexities by `ropex eval`."""
    command = ["eval", model, "-s", strategy, "--data", "docs.jsonl:text", "--excerpts", "4"]
    command += ["--lengths", "24,32,96", "--definitions", "local", "-o", str(out), "--json"]
    assert main(command) == 0
    rows = Results.load(out).of("local")[strategy]
    return [rows[length].perplexity for length in LENGTHS]


# Numbers.


def test_numbers_are_those_of_ropex_eval(there: Path, tmp_path: Path) -> None:
    [untouched] = lines(there / "out" / UNTOUCHED)
    first, last = (lines(there / "out" / f"stage-{n}" / FILE) for n in (1, 2))
    wanted = evaluated("tiny", "none", tmp_path / "untouched")
    assert untouched["perplexity"] == pytest.approx(wanted, rel=1e-6)
    wanted = evaluated("tiny", "yarn:4", tmp_path / "untouched")
    assert first[0]["perplexity"] == pytest.approx(wanted, rel=1e-6)
    # The final model scales by itself.
    wanted = evaluated("out/final", "none", tmp_path / "final")
    assert last[-1]["perplexity"] == pytest.approx(wanted, rel=1e-6)
    assert first[-1]["perplexity"] != pytest.approx(wanted, rel=1e-3)
    assert [line["step"] for line in first] == [0, 2, 4]
    assert [line["step"] for line in last] == [0, 2]


def test_the_table_shows_these_numbers(there: Path) -> None:
    [untouched] = lines(Path("out") / UNTOUCHED)
    first, last = (lines(Path("out") / f"stage-{n}" / FILE) for n in (1, 2))
    header, *rows = table([Trained.read(Path("out"))]).splitlines()
    assert header.split() == ["24", "32", "96", "at", "32,", "against", "none"]
    names = ["none", "out, yarn:4, before", "out, yarn:4, after 4 steps", "out, linear:8, before"]
    wanted = [untouched, first[0], first[-1], last[0], last[-1]]
    for name, line, row in zip([*names, "out, linear:8, after 2 steps"], wanted, rows, strict=True):
        assert row.startswith(f"{name} ")
        cells = row.removeprefix(name)
        for value in line["perplexity"]:
            assert f" {format_perplexity(value)} (" in cells
            cells = cells.partition(f" {format_perplexity(value)} (")[2]
        change = 100 * (line["perplexity"][1] / untouched["perplexity"][1] - 1)
        shown = "--" if name == "none" else f"{change:+.1f} %"
        assert shown in cells


@pytest.mark.parametrize(("length", "shown"), [(16, "24"), (31, "24"), (95, "32"), (96, "96")])
def test_the_change_is_at_the_longest_length_within_the_trained_one(
    there: Path, tmp_path: Path, length: int, shown: str
) -> None:
    shutil.copytree("out", tmp_path / "out")
    path = tmp_path / "out" / UNTOUCHED
    [line] = lines(path)
    path.write_text(json.dumps({**line, "trained_length": length}), encoding="utf-8")
    header, *rows = table([Trained.read(tmp_path / "out")]).splitlines()
    assert header.endswith(f"at {shown}, against none")
    after = lines(Path("out/stage-2") / FILE)[-1]
    column = LENGTHS.index(int(shown))
    change = 100 * (after["perplexity"][column] / line["perplexity"][column] - 1)
    assert f" {change:+.{0 if abs(change) >= 100 else 1}f} %" in rows[-1]


def test_steps_are_chosen(there: Path) -> None:
    read = Trained.read(Path("out"))
    names = [row.split("  ")[0] for row in table([read], [2]).splitlines()[2:]]
    assert names == ["out, yarn:4, after 2 steps", "out, linear:8, after 2 steps"]
    with pytest.raises(ValueError, match="linear:8 was not measured at step 4, but at 0, 2"):
        table([read], [4])


def test_the_verb_prints_the_table_in_text_or_markdown(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "out"]) == 0
    read = Trained.read(Path("out"))
    assert capsys.readouterr().out.strip() == table([read]).strip()
    assert main(["compare", "out", "--format", "markdown"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line]
    assert all(row.startswith("| ") and row.endswith(" |") for row in rows)
    cells = [[cell.strip() for cell in row[2:-2].split(" | ")] for row in rows]
    assert {len(row) for row in cells} == {5}
    assert all(set(cell) <= set("-:") for cell in cells[1])
    assert len(cells) == 2 + 5
    shown = [re.split(r" {2,}", line.strip()) for line in table([read]).splitlines()]
    plain = [[cell.replace("\\", "") for cell in row] for row in (cells[0], *cells[2:])]
    assert [row[1:] for row in plain[:1]] + plain[1:] == shown


def test_measuring_leaves_shifted_attention_in_place(place: Path) -> None:
    shifted = "training.shifted_attention=3"
    out = run("out", shifted)
    train(read_recipe(Path("mine.yaml"), [shifted]), Path("plain"), tell=silent)
    # What the model was before its first step has no groups: it equals what other runs measured.
    full = run("full")
    assert (out / UNTOUCHED).read_bytes() == (full / UNTOUCHED).read_bytes()
    kept = [(folder / "log.jsonl").read_text() for folder in (out, Path("plain"), full)]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in kept]
    assert losses[0] == losses[1] != losses[2]


# Runs that go on.


def test_a_run_that_goes_on_measures_what_one_does_that_was_not_interrupted(
    place: Path, measured: list[Any]
) -> None:
    stop = stop_at("step 3/")
    whole = run("whole")
    assert len(measured) == 4  # untouched, patched, after two steps and after four
    with pytest.raises(Stop):
        run("parts", tell=stop)
    kept = (Path("parts") / UNTOUCHED).read_bytes()
    measured.clear()
    parts = run("parts")
    assert (parts / UNTOUCHED).read_bytes() == kept == (whole / UNTOUCHED).read_bytes()
    assert lines(parts / "stage-1" / FILE) == lines(whole / "stage-1" / FILE)
    assert [line["step"] for line in lines(parts / "stage-1" / FILE)] == [0, 2, 4]
    [untouched] = lines(parts / UNTOUCHED)
    assert untouched["nll"] not in [[list(row) for row in each.nll] for each in measured]
    measured.clear()
    before = (parts / "stage-1" / FILE).read_bytes()
    run("parts")
    assert measured == []
    assert (parts / "stage-1" / FILE).read_bytes() == before
    assert (parts / UNTOUCHED).read_bytes() == kept


# Refusals.


def refused(capsys: pytest.CaptureFixture[str], *folders: str) -> str:
    assert main(["compare", *folders]) == 2
    [told] = capsys.readouterr().err.splitlines()
    return told


def test_a_folder_without_a_run_or_numbers_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "tiny").endswith("tiny holds no run of ropex eval or ropex train")
    assert refused(capsys, "nowhere").endswith("nowhere holds no run of ropex eval or ropex train")
    train(read_recipe(Path("mine.yaml"), ["training.steps=1"]), Path("out"), tell=silent)
    told = refused(capsys, "out")
    assert told.endswith(
        "nothing was measured in out; a recipe says what to measure under evaluate"
    )


def test_runs_that_were_measured_on_other_texts_are_refused(
    there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("same", "other"):
        shutil.copytree("out", tmp_path / name)
    path = tmp_path / "other" / UNTOUCHED
    [line] = lines(path)
    path.write_text(json.dumps({**line, "tokens_sha256": "0"}) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "same", "same"]) == 0
    capsys.readouterr()
    told = refused(capsys, "same", "other")
    assert told.endswith("other and same were measured on different texts")


@pytest.mark.parametrize("name", [UNTOUCHED, f"stage-1/{FILE}"])
def test_a_damaged_file_is_refused(
    there: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("out", tmp_path / "out")
    (tmp_path / "out" / name).write_text('{"step": 0, "lengths": [24', encoding="utf-8")
    assert "is damaged" in refused(capsys, str(tmp_path / "out"))
