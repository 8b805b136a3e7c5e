"""What is written into a patched checkpoint later never reaches the one that it was made from."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.checkpoints.copies import _clonefile, provide
from ropex.checkpoints.loading import load_skeleton
from ropex.checkpoints.write import save_patched
from ropex.config.notations import version_5
from tests.support.models import logits, plain, tiny_model, tokens
from tests.support.shell import Shell
from tests.support.tiny_eval import tree
from tests.support.written import write

WEIGHTS = "model.safetensors"


def changed(out: Path, *, scale: float = 2.0) -> Any:
    """The model in a folder, with other weights."""
    model = plain(out)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def copy_over(out: Path) -> None:
    """As `cp` does it."""
    (out / WEIGHTS).write_bytes(bytes((out / WEIGHTS).stat().st_size))


def write_in_place(out: Path) -> None:
    with (out / WEIGHTS).open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"changed!")


LATER: dict[str, Callable[[Path], Any]] = {
    "ropex.save": lambda out: ropex.save(changed(out), out),
    "save_pretrained": lambda out: changed(out).save_pretrained(out),
    "cp": copy_over,
    "in place": write_in_place,
    "chmod": lambda out: (out / WEIGHTS).chmod(0),
    "truncate": lambda out: os.truncate(out / WEIGHTS, 0),
}


@pytest.mark.parametrize("later", LATER)
def test_no_later_write_reaches_the_source(folder: Path, tmp_path: Path, later: str) -> None:
    before, mode = tree(folder), (folder / WEIGHTS).stat().st_mode
    write(folder, tmp_path / "out")
    same = (tmp_path / "out" / WEIGHTS).read_bytes()
    assert same == before[WEIGHTS]
    LATER[later](tmp_path / "out")
    assert tree(folder) == before
    assert (folder / WEIGHTS).stat().st_mode == mode


@pytest.mark.parametrize("linked", ["hard", "symbolic"])
@pytest.mark.parametrize("text", [None, "yarn:4", "logn"])
def test_saving_replaces_links_and_does_not_write_through_them(
    folder: Path, tmp_path: Path, linked: str, text: str | None
) -> None:
    model, out = changed(folder), tmp_path / "out"
    if text is not None:
        ropex.patch(model, text)
    ropex.save(model, tmp_path / "other")
    before = tree(tmp_path / "other")
    out.mkdir()
    for path in (tmp_path / "other").iterdir():
        (os.link if linked == "hard" else os.symlink)(path, out / path.name)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    ropex.save(model, out)
    assert tree(tmp_path / "other") == before
    assert set(tree(out)) == set(before)
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.iterdir())
    assert torch.equal(logits(ropex.load(out), tokens()), logits(model, tokens()))


def test_no_weights_of_an_earlier_save_are_read_instead_of_the_new_ones(tmp_path: Path) -> None:
    small, notes = {"max_shard_size": "12KB"}, tmp_path / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    for seed, options in ((0, {}), (1, small), (2, {}), (3, small)):
        torch.manual_seed(seed)
        model = tiny_model("llama", tie_word_embeddings=seed == 3)
        ropex.save(model, tmp_path, **options)
        loaded = plain(tmp_path)
        assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
    index = json.loads((tmp_path / f"{WEIGHTS}.index.json").read_text(encoding="utf-8"))
    there = {path.name for path in tmp_path.glob("*.safetensors")}
    assert there == set(index["weight_map"].values())
    assert notes.read_text(encoding="utf-8") == "mine"


def test_a_save_that_fails_leaves_what_was_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, model = tree(folder), changed(folder)

    def stop(*_: object) -> None:
        raise OSError("stopped")

    monkeypatch.setattr("ropex.checkpoints.load_save.complete_config", stop)
    with pytest.raises(OSError, match="stopped"):
        ropex.save(model, folder)
    assert tree(folder) == before


def test_saving_on_a_full_disk_is_an_error_of_the_system(folder: Path) -> None:
    before, model = tree(folder), changed(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="model could not be written: "):
            ropex.save(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(folder) == before


def test_links_are_made_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "out", link=True)
    assert (tmp_path / "out" / WEIGHTS).samefile(folder / WEIGHTS)
    assert not (tmp_path / "out" / "generation_config.json").samefile(
        folder / "generation_config.json"
    )
    before = tree(folder)
    ropex.save(changed(tmp_path / "out"), tmp_path / "out")
    assert tree(folder) == before


def test_what_a_link_means_is_said(folder: Path, shell: Shell) -> None:
    said = "what writes into one of them writes into both"
    status, _, err = shell("patch", folder, "-s", "yarn:4", "-o", "linked", "--link")
    assert (status, err.count(said)) == (0, 1)
    assert "written to linked, weights linked" in err
    status, _, err = shell("patch", folder, "-s", "yarn:4", "-o", "own")
    assert (status, err.count(said)) == (0, 0)
    assert "what writes into one writes into both" in " ".join(shell.done("patch", "-h").split())


def test_weights_that_are_written_anew_are_not_called_links(folder: Path, shell: Shell) -> None:
    options = ("--link", "--fold-temperature")
    status, _, err = shell("patch", folder, "-s", "yarn:4", "-o", "folded", *options)
    assert status == 0
    assert "written to folded, weights copied" in err
    assert "hard links" not in err


def test_a_link_that_cannot_be_made_is_refused(
    folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    told = shell.refused("patch", folder, "-s", "yarn:4", "-o", "out", "--link")
    assert "(Invalid cross-device link); leave out --link" in told


@pytest.mark.parametrize("folded", [(), ("--fold-temperature",)])
def test_a_disk_without_room_is_told_before_anything_is_written(
    folder: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, folded: tuple[str, ...]
) -> None:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("ropex.checkpoints.copies._clone", lambda *_: False)
    monkeypatch.setattr(
        "ropex.checkpoints.copies._copy", lambda *_: pytest.fail("it was written to")
    )
    size = (folder / WEIGHTS).stat().st_size / 2**20
    told = shell.refused("patch", folder, "-s", "yarn:4", "-o", "out", *folded)
    assert f"has 0.0 MiB free, and the weights need {size:.1f} MiB; write" in told
    assert "--link" in told


def test_holes_stay_holes(folder: Path, tmp_path: Path) -> None:
    source, target, hole = tmp_path / "source", tmp_path / "target", 2**36
    with source.open("wb") as file:
        file.write(b"start")
        file.seek(hole)
        file.write(b"end")
        file.truncate(hole + 2**30)
    assert provide([(source, target)], tmp_path) in ("copied", "cloned")
    assert target.stat().st_size == hole + 2**30
    assert target.stat().st_blocks < 1000
    with target.open("rb") as file:
        assert file.read(7) == b"start\0\0"
        file.seek(hole - 1)
        assert file.read(5) == b"\0end\0"


def test_a_file_system_that_clones_is_asked_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def clone(target: Any, request: int, source: int) -> None:
        asked.append(request)
        target.write(os.pread(source, 2**20, 0))

    monkeypatch.setattr("fcntl.ioctl", clone)
    monkeypatch.setattr("ropex.checkpoints.copies._copy", lambda *_: pytest.fail("it was copied"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: pytest.fail("it takes no room"))
    with ropex.patch(load_skeleton(folder), "yarn:4") as patch:
        assert save_patched(folder, patch, tmp_path / "out") == "cloned"
    assert asked == [0x40049409]  # FICLONE, from linux/fs.h
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_a_mac_clones_by_its_own_function(tmp_path: Path) -> None:
    calls: list[tuple[bytes, bytes, int]] = []

    class Library:
        def __init__(self, answer: int) -> None:
            self.answer = answer

        def clonefile(self, *given: Any) -> int:
            calls.append(given)
            return self.answer

    for answer in (0, -1):
        assert _clonefile(Library(answer), tmp_path, tmp_path / "b") == (answer == 0)
    assert calls == [(bytes(tmp_path), bytes(tmp_path / "b"), 0)] * 2


def test_what_is_read_only_can_be_edited_once_it_is_copied(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).chmod(0o444)
    write(folder, tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).stat().st_mode & 0o200


@pytest.mark.skipif(version_5(), reason="transformers 5 saves no pickles")
def test_saving_pickles_replaces_links_and_what_would_be_read_instead(
    folder: Path, tmp_path: Path
) -> None:
    model, out = changed(folder), tmp_path / "out"
    ropex.save(tiny_model("llama"), out, safe_serialization=False)
    (out / "model.bin").write_text("of another program", encoding="utf-8")
    os.link(out / "pytorch_model.bin", tmp_path / "linked.bin")
    before = (tmp_path / "linked.bin").read_bytes()
    ropex.save(model, out)
    ropex.save(model, out, safe_serialization=False)
    assert {path.name for path in out.glob("*model*")} == {"pytorch_model.bin", "model.bin"}
    assert (tmp_path / "linked.bin").read_bytes() == before
    assert torch.equal(logits(ropex.load(out), tokens()), logits(model, tokens()))
