"""Checkpoints of a training: whole as their checksums say, or not continued."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ropex.train.recipes.whole import SUMS, fault_of, last_whole, newest, seal
from tests.support.tiny_eval import tree

FILES = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth",
    "trainer_state.json", "adapter_model.safetensors", "tokenizer.json", "optimizer_0/__1_0.distcp",
    "optimizer_0/.metadata",
)  # fmt: skip
"""Of one process and of several, with adapters and in the folders of FSDP."""


def written(folder: Path, names: tuple[str, ...] = FILES) -> Path:
    """A checkpoint as far as files go, without its checksums."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(f"{folder.name} {name}").randbytes(100))
    return folder


def sealed(folder: Path) -> Path:
    seal(written(folder))
    return folder


def removed(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    os.truncate(path, 99)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TOLD: dict[Callable[[Path], None], str] = {
    removed: "{} is missing",
    truncated: "{} has 99 bytes of 100",
    emptied: "{} has 0 bytes of 100",
    flipped: "{} is not what was written",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", TOLD, ids=lambda each: each.__name__)
def test_damage_to_any_file_is_seen(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    folder = sealed(tmp_path / "checkpoint-4")
    assert fault_of(folder) is None
    damage(folder / name)
    assert fault_of(folder) == TOLD[damage].format(name)


@pytest.mark.parametrize("damage", [truncated, emptied, flipped])
def test_damage_to_the_checksums_is_seen(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = sealed(tmp_path / "checkpoint-4")
    damage(folder / SUMS)
    assert fault_of(folder) is not None


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    content = json.loads((sealed(tmp_path / "checkpoint-4") / SUMS).read_text(encoding="utf-8"))
    assert set(content["files"]) == set(FILES)
    for name, about in content["files"].items():
        content_of = (tmp_path / "checkpoint-4" / name).read_bytes()
        assert about == {"bytes": 100, "sha256": hashlib.sha256(content_of).hexdigest()}


def test_what_somebody_puts_beside_it_does_not_matter(tmp_path: Path) -> None:
    folder = sealed(tmp_path / "checkpoint-4")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert fault_of(folder) is None


def test_the_last_whole_one_is_used_and_damaged_ones_are_put_aside(tmp_path: Path) -> None:
    whole, first, second = (sealed(tmp_path / f"checkpoint-{n}") for n in (9, 10, 100))
    flipped(first / "optimizer.pt")
    removed(second / "scheduler.pt")
    left, told = tree(first), list[str]()
    assert newest(tmp_path) == second
    assert last_whole(tmp_path, told.append) == whole
    assert told == [
        f"{second} is damaged (scheduler.pt is missing); it is now damaged-checkpoint-100, and "
        f"training continues from {whole}",
        f"{first} is damaged (optimizer.pt is not what was written); it is now "
        f"damaged-checkpoint-10, and training continues from {whole}",
    ]
    assert tree(tmp_path / "damaged-checkpoint-10") == left
    assert last_whole(tmp_path, pytest.fail) == newest(tmp_path) == whole


def test_nothing_is_moved_where_none_is_whole(tmp_path: Path) -> None:
    for step in (2, 4):
        emptied(sealed(tmp_path / f"checkpoint-{step}") / "model.safetensors")
    before = tree(tmp_path)
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"checkpoint-4 is damaged .*no complete checkpoint is"
        ):
            last_whole(tmp_path, pytest.fail)
    assert tree(tmp_path) == before


def test_what_was_being_written_is_removed_and_told(tmp_path: Path) -> None:
    whole, half = sealed(tmp_path / "checkpoint-2"), written(tmp_path / "checkpoint-4")
    told: list[str] = []
    assert last_whole(tmp_path, told.append) == whole
    assert told == [f"{half} was half written when a run was killed, and is removed"]
    assert not half.exists()
    assert last_whole(tmp_path / "nowhere", pytest.fail) is None


# Of earlier versions, which left an empty file and no checksums.

OLD = ("model.safetensors", "rng_state.pth", "trainer_state.json", "config.json")


def old(folder: Path, without: str = "") -> Path:
    written(folder, OLD)
    torch.save({}, folder / "optimizer.pt")
    torch.save({}, folder / "scheduler.pt")
    torch.save({}, folder / "rng_state.pth")
    if without:
        (folder / without).unlink()
    (folder / "ropex-whole").touch()
    return folder


def test_one_without_checksums_is_used_if_all_is_there_and_that_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    folder = old(tmp_path / "checkpoint-2")
    assert last_whole(tmp_path, told.append) == folder
    assert told == [
        f"{folder} is of an earlier version of ropex and has no checksums; training continues "
        "from it, as all files that this needs are there"
    ]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", *OLD[:3]])
def test_one_without_checksums_that_lacks_a_file_is_not(tmp_path: Path, name: str) -> None:
    folder = old(tmp_path / "checkpoint-2", without=name)
    assert fault_of(folder) == f"{name} is missing"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_one_without_checksums_that_is_cut_short_is_not(tmp_path: Path, name: str) -> None:
    path = old(tmp_path / "checkpoint-2") / name
    os.truncate(path, path.stat().st_size - 30)
    assert fault_of(path.parent) == f"{name} is damaged"
