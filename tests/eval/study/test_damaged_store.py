"""Stored passes that are damaged, or were never one; and writing that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from ropex_eval.study.store import Store
from tests.support.stored import IDS, KEY, ROWS, put
from tests.support.tiny_eval import tree


def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        content: dict[str, Any] = json.loads(file.metadata()["ropex"])
    return content


def with_about(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = about(path) | changes
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"ropex": json.dumps(content)})

    return change


def without_metadata(path: Path) -> None:
    path.write_bytes(save({name: each.clone() for name, each in load_file(path).items()}))


def holding(metadata: dict[str, str], **tensors: torch.Tensor) -> Callable[[Path], None]:
    return rewrite(lambda raw: save(tensors or {"ids": IDS[None]}, metadata))


DAMAGES = [
    rewrite(lambda raw: raw[:-8]), rewrite(lambda raw: raw[:40]), rewrite(lambda raw: b""),
    rewrite(lambda raw: b"\xff" * 200), rewrite(lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
    a_folder, with_about(format="ropex nll 1"), with_about(format=None), with_about(rows=None),
    with_about(rows=[[1], [2]]), with_about(rows=[[3, 6], [7, 10]]), with_about(length=11),
    with_about(sha256="0" * 64), without_metadata, holding({"ropex": "[]"}),
    holding({"ropex": "null"}), holding({"ropex": "{"}), holding({"ropex": "{}"}),
    holding({"key": KEY, "strategy": "none"}, **{"prefix.48": torch.zeros(3, 47)}),
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_told_once_in_a_sentence_and_holds_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "nll"
    told: list[str] = []
    path = put(Store(folder))
    other = put(Store(folder), IDS + 1)
    damage(path)
    store = Store(folder, told.append)
    store.refresh()
    assert not store.take(path)
    if damage is not a_folder:  # which is no file
        (sentence,) = told
        assert sentence.startswith(f"{path} is damaged, and what it held is measured again (")
        assert "\n" not in sentence
    assert store.find(KEY, IDS, 10, ROWS) is None
    assert store.find(KEY, IDS + 1, 10, ROWS) is not None
    if damage is not a_folder:
        assert put(store) == path
        assert store.find(KEY, IDS, 10, ROWS) is not None
        told.clear()
        assert Store(folder, told.append).find(KEY, IDS, 10, ROWS) is not None
        assert told == []
    assert other.is_file()


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_writing_that_fails_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = Store(tmp_path)
    put(store)
    before = tree(tmp_path)

    def full(self: Path, *given: Any) -> None:
        if step == "write_bytes":
            self.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, step, full)
    with pytest.raises(OSError, match="No space left"):
        put(store, IDS + 1)
    assert tree(tmp_path) == before
