"""The stored table: what it finds again, what it never takes for something else, and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ropex_eval.study.passes import Stretches
from ropex_eval.study.store import Store
from tests.support.stored import IDS, KEY, ROWS, length_of, put, read, scores
from tests.support.tiny_eval import tree


def test_pass_is_found_again_by_this_and_by_another_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = put(store)
    assert list(tree(tmp_path)) == [path.name]
    for each in (store, Store(tmp_path)):
        found = each.find(KEY, IDS, 10, ROWS)
        assert found is not None
        assert (found.rows, found.length, found.path) == (ROWS, 10, path)
        assert found.nll.dtype == torch.float32
        assert torch.equal(found.nll, scores(KEY, IDS, ROWS))


@pytest.mark.parametrize(
    ("key", "ids", "length", "rows", "known"),
    [
        (KEY, IDS, 10, ROWS, True),
        (KEY, IDS, 10, ((7, 10),), True),
        (KEY, IDS, 10, ((3, 4), (8, 9)), True),
        (KEY, IDS[:6], 6, ((2, 5),), True),
        (KEY, IDS[:6], 5, ((2, 5),), True),
        (KEY, IDS[:5], 5, ((3, 4),), True),
        (KEY, IDS, 10, ((2, 6),), False),
        (KEY, IDS, 10, ((2, 10),), False),
        (KEY, IDS, 10, ((0, 1),), False),
        (KEY, IDS, 10, ((5, 7),), False),
        (KEY, IDS, 11, ((7, 10),), False),
        (KEY, torch.arange(20, 32), 11, ((7, 10),), False),
        (KEY, IDS[1:], 9, ((7, 9),), False),
        (KEY, torch.cat([IDS[:10], IDS[:1]]), 10, ((7, 10),), False),
        (KEY, torch.cat([IDS[:4], IDS[3:10]]), 10, ((2, 4),), False),
        (KEY, torch.cat([IDS[:1] - 1, IDS[1:]]), 10, ((7, 10),), False),
        ("l" * 64, IDS, 10, ROWS, False),
    ],
)
def test_only_what_says_all_that_is_asked_for_is_found(
    tmp_path: Path, key: str, ids: Tensor, length: int, rows: Stretches, known: bool
) -> None:
    store = Store(tmp_path)
    put(store)
    found = store.find(key, ids, length, rows)
    assert (found is not None) == known
    if found is not None:
        got = torch.cat([found.at(first, last) for first, last in rows])
        assert torch.equal(got, scores(KEY, ids, rows))


def a_pass(draw: Any) -> tuple[Tensor, Stretches]:
    tokens = draw(st.lists(st.integers(0, 1), min_size=2, max_size=7))
    edges = draw(st.sets(st.integers(0, len(tokens) - 1), min_size=2, max_size=4))
    ordered = sorted(edges)
    rows = tuple(zip(ordered[::2], ordered[1::2], strict=False))
    return torch.tensor(tokens), rows


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_what_is_found_is_true_and_what_is_known_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    stored = [a_pass(data.draw) for _ in range(data.draw(st.integers(1, 4)))]
    for number, (ids, rows) in enumerate(stored):
        put(store, ids, rows, "ab"[number % 2])
    ids, rows = a_pass(data.draw)
    length = length_of(ids, rows)
    wanted = {(place, tuple(ids[: place + 2].tolist())) for a, b in rows for place in range(a, b)}
    for key in "ab":
        known = any(
            length_of(other, r) >= length
            and wanted <= {(p, tuple(other[: p + 2].tolist())) for a, b in r for p in range(a, b)}
            and other[: len(ids)].tolist() == ids.tolist()
            for number, (other, r) in enumerate(stored)
            if "ab"[number % 2] == key
        )
        for each in (store, Store(store.folder)):
            found = each.find(key, ids, length, rows)
            if found is None:
                assert not known
                continue
            got = torch.cat([found.at(first, last) for first, last in rows])
            assert torch.equal(got, scores(key, ids, rows))


@pytest.mark.parametrize("turn", [1, -1])
def test_which_of_several_answers_does_not_depend_on_their_order(tmp_path: Path, turn: int) -> None:
    store = Store(tmp_path)
    passes: list[tuple[Tensor, Stretches]] = [
        (IDS[:6], ((2, 5),)), (IDS[:10], ((2, 5),)), (IDS, ROWS), (IDS[:8], ((2, 5), (6, 7))),
    ]  # fmt: skip
    for ids, rows in passes[::turn]:
        put(store, ids, rows)
    for each in (store, Store(tmp_path)):
        found = each.find(KEY, IDS[:6], 5, ((2, 5),))
        assert found is not None
        assert (found.length, found.rows) == (10, ROWS)  # as a run of the longest alone would


def test_stores_of_one_folder_see_what_each_other_writes(tmp_path: Path) -> None:
    one, other = Store(tmp_path), Store(tmp_path)
    path = put(one)
    assert other.find(KEY, IDS, 10, ROWS) is None
    assert other.take(path)
    assert other.find(KEY, IDS, 10, ROWS) is not None
    put(one, IDS + 1)
    other.refresh()
    assert other.find(KEY, IDS + 1, 10, ROWS) is not None
    assert not other.take(tmp_path / "none.safetensors")


def test_passes_side_by_side_share_a_file(tmp_path: Path) -> None:
    store, ids = Store(tmp_path), [IDS, IDS + 50]
    batch = [read(), read(excerpt=1)]
    nll = torch.stack([scores(KEY, each, ROWS) for each in ids])
    store.put(KEY, batch, ids, nll)
    assert len(tree(tmp_path)) == 1
    for each, row in zip(ids, nll, strict=True):
        found = Store(tmp_path).find(KEY, each, 10, ROWS)
        assert found is not None
        assert torch.equal(found.nll, row)
    names = {
        store.path(key, [read(length, rows)], [each]).name
        for key in (KEY, "l" * 64)
        for length in (9, 10)
        for rows in (ROWS, ROWS[:1])
        for each in (IDS, IDS + 1)
    }
    assert len(names) == 16
