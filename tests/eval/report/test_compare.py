"""Two runs on the same tokens: of two models, or of one that was measured twice."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex_eval.running.archive import Archive, common, difference
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.statistics import Estimate
from ropex_eval.study.corpus import load_corpus
from ropex_eval.study.study import Study
from tests.support.models import save_checkpoint, tiny_causal, tiny_tokenizer
from tests.support.rounding import LOSS
from tests.support.shell import Shell
from tests.support.tiny_eval import corpus_of, plain_nll, start, study_of, tree, words

STRATEGIES = ("none", "yarn:4", "dynamic")
MEASURED = Protocol.of((8, 24, 48), 4)
T_OF_ONE = 12.706204736  # Student's t, 97.5 %, one degree of freedom


@dataclasses.dataclass(frozen=True)
class Place:
    """Two checkpoints with one tokenizer, and a run of each on the same texts."""

    folder: Path
    studies: tuple[Study, Study]

    def run(self, index: int, name: str, *strategies: str, **changes: Any) -> Path:
        """A run of one of them, with changes to its study."""
        study = dataclasses.replace(self.studies[index], **changes)
        start(study, self.folder / name, *(strategies or STRATEGIES))
        return self.folder / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("compare")
    models = [tiny_causal(seed=seed) for seed in (0, 1)]
    one, two = (
        study_of(folder, save_checkpoint(folder / f"m{seed}", seed=seed), model, MEASURED,
                 excerpts=4)
        for seed, model in enumerate(models)
    )  # fmt: skip
    found = Place(folder, (one, two))
    found.run(0, "left")
    found.run(1, "right")
    return found


@pytest.fixture
def shell(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell.at(place.folder, capsys, monkeypatch)


def paired(place: Place, text: str, name: str, length: int, chosen: Any = range(4)) -> list[Any]:
    """What a token costs more in the second model, by document, worked out by hand."""
    corpus = place.studies[0].corpus
    found: dict[str, list[float]] = {}
    for excerpt in (corpus.excerpts[index] for index in chosen):
        ids = torch.cat([torch.tensor([0]), excerpt.ids])
        if name == "fixed":
            ids = torch.cat([ids[:1], ids[len(ids) - length + 1 :]])
        sums = []
        for study in place.studies:
            with ropex.patch(study.load(), text):
                nll = plain_nll(study.load(), ids[:length])
            sums.append(float((nll if name == "prefix" else nll[-4:]).mean()))
        found.setdefault(excerpt.document, []).append(sums[1] - sums[0])
    return [statistics.fmean(values) for values in found.values()]


def compared(left: Path, right: Path, text: str, name: str, length: int) -> Estimate:
    return difference(*common(Archive.open(left), Archive.open(right)), text, name, length)


@pytest.mark.parametrize("text", STRATEGIES)
@pytest.mark.parametrize("name", ["local", "fixed", "prefix"])
@pytest.mark.parametrize("length", [8, 48])
def test_difference_of_two_models_is_that_of_plain_forward_passes(
    place: Place, text: str, name: str, length: int
) -> None:
    found = compared(place.folder / "left", place.folder / "right", text, name, length)
    first, second = paired(place, text, name, length)
    assert found.mean == pytest.approx((first + second) / 2, abs=LOSS)
    assert found.se == pytest.approx(abs(first - second) / 2, abs=LOSS)  # of two documents
    assert found.interval[1] == pytest.approx(found.mean + T_OF_ONE * (found.se or 0), rel=1e-3)
    assert found.clusters == 2
    back = compared(place.folder / "right", place.folder / "left", text, name, length)
    assert back.mean == -found.mean


def test_run_compared_with_itself_differs_in_nothing(place: Place) -> None:
    found = compared(place.folder / "left", place.folder / "left", "yarn:4", "fixed", 48)
    assert (found.mean, found.se) == (0, 0)


def test_pairs_are_found_by_their_tokens_and_not_by_name_or_order(place: Place) -> None:
    corpus = place.studies[1].corpus
    moved = dataclasses.replace(
        corpus,
        source="elsewhere",
        excerpts=tuple(
            dataclasses.replace(each, document=f"moved-{each.document}", start=7)
            for each in reversed(corpus.excerpts)
        ),
    )
    right = place.run(1, "moved", corpus=moved)
    for name in ("local", "prefix"):
        found = compared(place.folder / "left", right, "yarn:4", name, 48)
        assert found == compared(
            place.folder / "left", place.folder / "right", "yarn:4", name, 48
        )  # to the bit


def test_runs_are_compared_on_the_excerpts_that_both_have(place: Place) -> None:
    corpus = place.studies[1].corpus
    fewer = dataclasses.replace(corpus, excerpts=corpus.excerpts[2:0:-1])
    right = place.run(1, "fewer", corpus=fewer)
    for pair in ((place.folder / "left", right), (right, place.folder / "left")):
        found = compared(*pair, "yarn:4", "local", 24)
        first, second = paired(place, "yarn:4", "local", 24, (1, 2))
        sign = 1 if pair[1] == right else -1
        assert found.mean == pytest.approx(sign * (first + second) / 2, abs=LOSS)
        assert found.weight == 2 * 4
    for run in common(Archive.open(place.folder / "left"), Archive.open(right)):
        about = run.rescore().about["data"]
        assert (about["excerpts"], about["documents"]) == (2, ["b.txt", "a.txt"])


def test_text_that_comes_twice_counts_twice(place: Place) -> None:
    runs = []
    for index in (0, 1):
        one, two, *_ = place.studies[index].corpus.excerpts
        again = dataclasses.replace(one, document="again")
        corpus = dataclasses.replace(place.studies[index].corpus, excerpts=(one, two, again))
        runs.append(place.run(index, f"twice{index}", "none", corpus=corpus))
    found = compared(runs[0], runs[1], "none", "local", 24)
    first, second = paired(place, "none", "local", 24, (0, 1))
    assert found.mean == pytest.approx((2 * first + second) / 3, abs=LOSS)
    assert (found.clusters, found.weight) == (3, 12)
    for pair in ((runs[0], place.folder / "right"), (place.folder / "left", runs[1])):
        assert compared(*pair, "none", "local", 24).weight == 8  # those that both have


def test_runs_are_compared_at_the_lengths_and_by_the_definitions_that_both_have(
    place: Place, shell: Shell
) -> None:
    other = Protocol.of((12, 24, 48), 4, ("prefix", "local", "disjoint"))
    place.run(1, "lengths", "none", "linear:4", "yarn:4", protocol=other)
    told = shell.done("compare", "left", "lengths")
    assert [line.split() for line in told.splitlines() if line.startswith("L =")] == [
        ["L", "=", "24", "48"]
    ] * 2
    assert [part.split(":")[0] for part in told.split("\n\n")] == ["local", "prefix"]
    rows = [line.split()[0] for line in told.splitlines() if line.startswith(("none", "yarn"))]
    assert rows == ["none", "yarn:4"] * 2
    assert "linear" not in told
    found = compared(place.folder / "left", place.folder / "lengths", "yarn:4", "local", 24)
    assert found.mean == pytest.approx(
        statistics.fmean(paired(place, "yarn:4", "local", 24)), abs=LOSS
    )


def test_compare_prints_percent_of_perplexity_and_writes_a_page(place: Place, shell: Shell) -> None:
    before = tree(place.folder)
    told = shell.done("compare", "left", "right", "-o", "page.html")
    after = tree(place.folder)
    assert after.keys() - before.keys() == {"page.html"}
    assert {name: after[name] for name in before} == before
    change = math.expm1(statistics.fmean(paired(place, "none", "fixed", 8))) * 100
    fixed = next(part for part in told.split("\n\n") if part.startswith("fixed:"))
    row = next(line for line in fixed.splitlines() if line.startswith("none"))
    assert f"{change:+.1f}" in row
    page = (place.folder / "page.html").read_text(encoding="utf-8")
    assert all(text in page for text in STRATEGIES)
    assert shell.done("compare", "left", "right") == told
    (place.folder / "page.html").unlink()


# What cannot be compared.


def other_text(study: Study, folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_text(words(400, seed=9), encoding="utf-8")
    return {"corpus": load_corpus(str(folder / "a.txt"), tiny_tokenizer(), 0, 48, 3)}


def no_bos(study: Study, folder: Path) -> dict[str, Any]:
    cut = [dataclasses.replace(each, ids=each.ids.repeat(2)[:48]) for each in study.corpus.excerpts]
    return {"corpus": dataclasses.replace(study.corpus, bos=None, excerpts=tuple(cut))}


def longer_excerpts(study: Study, folder: Path) -> dict[str, Any]:
    protocol = Protocol.of((8, 24, 48), 4, excerpt=96)
    return {"corpus": corpus_of(folder, 96), "protocol": protocol}


def protocol(*given: Any, **settings: Any) -> Callable[[Study, Path], dict[str, Any]]:
    return lambda study, folder: {"protocol": Protocol.of(*given, **settings)}


DIFFERENTLY = "their excerpts begin differently, or are not of one length"
REFUSED: dict[str, tuple[str, Callable[[Study, Path], dict[str, Any]], str]] = {
    "text": ("none", other_text, "no excerpts in common"),
    "targets": ("none", protocol((8, 24, 48), 3), "no targets in common"),
    "bos": ("none", lambda study, _: {"corpus": dataclasses.replace(study.corpus, bos=1)},
            DIFFERENTLY),
    "no bos": ("none", no_bos, DIFFERENTLY),
    "longer excerpts": ("none", longer_excerpts, DIFFERENTLY),
    "lengths": ("none", protocol((12, 40), 4, excerpt=48), "no lengths in common"),
    "strategies": ("linear:4", lambda study, _: {}, "no strategy in common"),
    "definitions": ("none", protocol((8, 24, 48), 4, ("disjoint",)), "no definitions in common"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_did_not_read_the_same_is_refused_in_one_line(
    place: Place, shell: Shell, tmp_path: Path, name: str
) -> None:
    strategy, change, message = REFUSED[name]
    right = place.run(1, f"other {name}", strategy, **change(place.studies[1], tmp_path))
    assert message in shell.refused("compare", "left", right.name)
    assert message in shell.refused("compare", right.name, "left")


def test_numbers_that_mean_other_things_are_left_out(place: Place) -> None:
    names = ("local", "sliding", "longppl", "mean_perplexity", "window_mean")
    runs = [
        place.run(index, f"stride{index}", "none",
                  protocol=Protocol.of((24, 48), 4, names, stride, 48))
        for index, stride in enumerate((4, 8))
    ]  # fmt: skip
    left, right = common(*map(Archive.open, runs))
    assert left.protocol.definitions == right.protocol.definitions == ("local",)
