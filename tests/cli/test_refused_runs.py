"""What stands in the way of a run, and what stays untouched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from ropex_eval.study.study import Study
from tests.support.models import save_checkpoint, tiny_causal
from tests.support.tiny_eval import Watch, start, study_of, tree

SMALL = Protocol.of((8, 48))


@pytest.fixture
def study(tmp_path: Path, checkpoint: Path, causal: Any) -> Study:
    return study_of(tmp_path, checkpoint, causal, SMALL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def other_weights(study: Study, folder: Path) -> Study:
    """The same, of another checkpoint."""
    other = save_checkpoint(folder / "other", seed=1)
    return dataclasses.replace(study, folder=other, load=lambda: tiny_causal(seed=1))


OTHER_MODELS: dict[str, Callable[[Study, Path], Study]] = {
    "model.sha256": other_weights,
    "model.trained_length": lambda study, _: dataclasses.replace(study, trained_length=16),
    "model.dtype": lambda study, _: dataclasses.replace(
        study, dtype="bfloat16", load=lambda: tiny_causal().to(torch.bfloat16)
    ),
    "model.device": lambda study, _: dataclasses.replace(study, device="meta"),
    "versions.torch": lambda study, _: study,
}


@pytest.mark.parametrize("differs", OTHER_MODELS)
def test_another_model_in_the_folder_is_refused_and_replaced_by_force(
    study: Study, tmp_path: Path, out: Path, measured: Watch, monkeypatch: pytest.MonkeyPatch,
    differs: str,
) -> None:  # fmt: skip
    start(study, out, "none", "linear:4")
    before = tree(out)
    other = OTHER_MODELS[differs](study, tmp_path)
    if differs == "versions.torch":
        for place in ("ropex_eval.running.claim.versions", "ropex_eval.study.study.versions"):
            monkeypatch.setattr(place, lambda: {"transformers": "5", "torch": "9.9"})
    with pytest.raises(FileExistsError, match="holds a run of a different model") as caught:
        start(other, out, "none", "yarn:4")
    assert differs in str(caught.value)
    assert tree(out) == before
    assert measured.take() == ["none", "linear:4"]
    replaced = start(other, out, "yarn:4", force=True)
    assert measured.take() == ["yarn:4"]
    assert list(replaced.strategies) == ["yarn:4"]
    assert start(other, tmp_path / "fresh", "yarn:4").results == replaced.results


def test_force_on_the_same_model_throws_nothing_away(
    study: Study, out: Path, measured: Watch
) -> None:
    start(study, out, "none", "yarn:4")
    assert measured.take() == ["none", "yarn:4"]
    assert list(start(study, out, "none", force=True).strategies) == ["none", "yarn:4"]
    assert measured.take() == []


def test_names_of_model_and_text_do_not_matter(
    study: Study, tmp_path: Path, out: Path, measured: Watch
) -> None:
    start(study, out, "none")
    moved = dataclasses.replace(
        study,
        model_id="elsewhere",
        folder=save_checkpoint(tmp_path / "copy"),
        corpus=dataclasses.replace(
            study.corpus,
            source="elsewhere",
            excerpts=tuple(
                dataclasses.replace(each, document=f"moved-{each.document}")
                for each in study.corpus.excerpts
            ),
        ),
    )
    measured.take()
    start(moved, out, "none")
    assert measured.take() == []


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"not json", b"\xff\xfe", b'{"schema": 2}',
        b'{"schema": 1, "about": {}, "strategies": {}, "results": []}',
        b'{"schema": 2, "about": {}, "strategies": {}, "results": []}',
        b'{"schema": 2, "about": [], "strategies": {}, "results": []}',
        b'{"schema": 3, "about": {"model": {}, "data": {}}, "strategies": {}}',
        b'{"schema": 3, "about": {"model": {}, "data": {}, "protocol": {}, "versions": {}},'
        b' "strategies": {}, "results": [{"x": 1}]}',
        b'{"schema": 3, "about": {"model": {}, "data": {}, "protocol": {}, "versions": {}},'
        b' "strategies": {}, "results": [1]}',
        b'{"schema": 3, "about": {"model": {}, "data": {}, "protocol": {}, "versions": {}},'
        b' "strategies": {}, "nothing": []}',
        b'{"schema": 3, "about": {"model": null, "data": {}, "protocol": {}, "versions": {}},'
        b' "strategies": {}}',
        b'{"schema": 2, "about": {"model": {}, "data": {"tokens": 48}, "versions": {}, "protocol":'
        b' {"lengths": "8", "targets": 4, "definitions": [], "stride": null}}, "strategies": {}}',
    ],
)  # fmt: skip
def test_results_that_are_not_a_runs_are_refused_and_stay(
    study: Study, out: Path, measured: Watch, content: bytes
) -> None:
    out.mkdir()
    (out / "results.json").write_bytes(content)
    with pytest.raises((ValueError, FileExistsError), match=r"results.json|different model"):
        start(study, out, "none")
    assert tree(out) == {"results.json": content}
    assert measured.take() == []
    start(study, out, "none", force=True)
    assert list(Results.load(out).strategies) == ["none"]


def test_force_waits_for_the_run_that_it_would_replace(
    study: Study, tmp_path: Path, out: Path, measured: Watch
) -> None:
    other, told = other_weights(study, tmp_path), list[str]()

    def meanwhile() -> None:
        for force in (False, True):
            with pytest.raises(
                FileExistsError, match=r"different model (\(model|is at work)"
            ) as error:
                start(other, out, "none", force=force)
            told.append(str(error.value))

    start(study, out, "none", begin=meanwhile)
    assert told[1] == (
        f"a run of a different model is at work in {out}; give another folder, or --force when it "
        "has ended"
    )
    assert measured.take() == ["none"]
    start(other, out, "none", force=True)
    assert Results.load(out).about["model"]["sha256"] == other.about_model["sha256"]


def test_results_that_were_replaced_meanwhile_are_not_written_over(
    study: Study, tmp_path: Path, out: Path
) -> None:
    start(other_weights(study, tmp_path), tmp_path / "theirs", "none")
    theirs = (tmp_path / "theirs" / "results.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"results.json was removed or replaced while"):
        start(study, out, "none", begin=lambda: (out / "results.json").write_bytes(theirs))
    assert (out / "results.json").read_bytes() == theirs


def test_what_a_killed_run_left_half_written_is_removed_and_told(
    study: Study, tmp_path: Path, out: Path
) -> None:
    whole = start(study, tmp_path / "whole", "none")
    (out / "nll").mkdir(parents=True)
    (out / ".at-work").mkdir()
    half = (out / "nll" / "1f.safetensors.4711.tmp", out / "results.json.4711.tmp")
    for path in (*half, out / ".at-work" / "dead.lock"):
        path.write_bytes(b"half")
    (out / "results.json").write_bytes((tmp_path / "whole" / "results.json").read_bytes())
    mine = out / "notes.tmp"
    mine.write_bytes(b"mine")
    told: list[str] = []
    assert start(study, out, "none", tell=told.append) == whole
    assert told == [f"2 files that a killed run had half written in {out} are removed"]
    mine.unlink()
    assert tree(out) == tree(tmp_path / "whole")


def test_what_a_run_at_work_has_half_written_stays(study: Study, out: Path) -> None:
    half = out / "nll" / "1f.safetensors.4711.tmp"

    def meanwhile() -> None:
        half.parent.mkdir()
        half.write_bytes(b"half")
        start(study, out, "none")
        assert half.is_file()

    start(study, out, "none", begin=meanwhile)


def test_folder_of_other_files_is_refused_and_stays(study: Study, out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds other files; give another folder, or --force"):
        start(study, out, "none")
    assert tree(out) == {"thesis.txt": b"years"}
    start(study, out, "none", force=True)
    assert (out / "thesis.txt").read_bytes() == b"years"


def test_file_in_place_of_the_folder_is_refused_and_stays(study: Study, out: Path) -> None:
    out.write_text("years", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="is a file; give a folder"):
            start(study, out, "none", force=force)
    assert out.read_bytes() == b"years"


@pytest.mark.parametrize("text", ["yarn:length=16", "logn+logn"])
def test_strategy_that_does_not_fit_the_model_is_refused_before_any_is_measured(
    study: Study, out: Path, measured: Watch, text: str
) -> None:
    with pytest.raises(ValueError, match=r"longer length|scaled already"):
        start(study, out, "none", text)
    assert measured.take() == []
    assert not out.exists()


def test_model_that_scales_by_length_itself_is_refused(
    tmp_path: Path, checkpoint: Path, out: Path
) -> None:
    scaled = tiny_causal(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    study = study_of(tmp_path, checkpoint, scaled, SMALL)
    with pytest.raises(ValueError, match="results depend on earlier texts; take that out"):
        start(study, out, "none")
    assert not out.exists()
