"""Rows of tokens from documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropex.train.recipes.pools import rows_of
from ropex.train.recipes.recipe import Data, Source, Stage, Training
from ropex.train.recipes.rows import Cutter, MixedRows, Row, StreamedRows, turns
from tests.support.models import tiny_causal, tiny_tokenizer
from tests.support.tiny_eval import words

TOKENIZER = tiny_tokenizer()
BOS = TOKENIZER.bos_token_id


def documents(folder: Path, *texts: str, name: str = "docs.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"{path}:text"


def cutter(length: int, bos: str = "auto") -> Cutter:
    data = Data(length, (Source("x"),), bos=bos)  # type: ignore[arg-type]
    return Cutter.of(data, TOKENIZER, tiny_causal(), "tiny")


def test_ids_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    data = Data(16, (Source("x"),))  # type: ignore[arg-type]
    made = Cutter.of(data, TOKENIZER, tiny_causal(vocab_size=50), "tiny")
    with pytest.raises(ValueError, match=r"and tiny has embeddings of 0 to 49; give it"):
        next(made.rows(Source(documents(tmp_path, words(50)))))


def spelt(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids))


def test_a_split_document_is_pieces_one_after_the_other(tmp_path: Path) -> None:
    text = words(50)
    rows = list(cutter(16).rows(Source(documents(tmp_path, text, "short"))))
    assert [row["lengths"] for row in rows] == [[16]] * 3
    assert all(row["input_ids"][0] == BOS for row in rows)
    assert "".join(spelt(row["input_ids"][1:]) for row in rows) == text[:45]


def test_without_a_token_in_front_rows_are_all_text(tmp_path: Path) -> None:
    rows = list(cutter(10, "none").rows(Source(documents(tmp_path, words(25)))))
    assert "".join(spelt(row["input_ids"]) for row in rows) == words(25)[:20]


def test_joined_documents_are_one_text_with_a_token_before_each(tmp_path: Path) -> None:
    texts = [words(40, 1), words(7, 2), words(30, 3)]
    rows = list(cutter(16).rows(Source(documents(tmp_path, *texts), layout="join")))
    assert [row["lengths"] for row in rows] == [[16]] * 5
    joined = [token for text in texts for token in (BOS, *TOKENIZER(text).input_ids[1:])]
    assert [token for row in rows for token in row["input_ids"]] == joined[:80]


TEXTS = st.lists(st.text("abc ", min_size=2, max_size=40), min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(texts=TEXTS, length=st.integers(4, 20), longest=st.integers(3, 30), bos=st.booleans())
def test_packed_rows_hold_every_token_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], length: int, longest: int, bos: bool
) -> None:
    texts = [text if text.strip() else "ab" for text in texts]
    folder = tmp_path_factory.mktemp("packed")
    source = Source(documents(folder, *texts), layout="pack", longest=longest)  # type: ignore[arg-type]
    rows = list(cutter(length, "auto" if bos else "none").rows(source))
    found = ""
    for row in rows:
        assert sum(row["lengths"]) == len(row["input_ids"]) <= length
        start = 0
        for size in row["lengths"]:
            piece = row["input_ids"][start : start + size]
            assert 1 + bos <= len(piece) <= longest
            assert not bos or (piece[0] == BOS and BOS not in piece[1:])
            found += spelt(piece[1:] if bos else piece)
            start += size
    assert found == "".join(texts)
    assert all(length - len(row["input_ids"]) <= bos for row in rows[:-1])


def test_texts_without_a_row_are_refused(tmp_path: Path) -> None:
    source = Source(documents(tmp_path, "short", "longer, a bit"))
    with pytest.raises(ValueError, match="the longest of 2 documents has 14 tokens, and a row"):
        list(cutter(20).rows(source))


def test_shares_decide_from_where_rows_come() -> None:
    sources = (Source("a", share=3), Source("b", share=1))
    chosen = turns(sources, 4000, seed=0)
    assert 2850 < chosen.count(0) < 3150
    assert chosen == turns(sources, 4000, seed=0) != turns(sources, 4000, seed=1)


def test_every_row_comes_once_before_any_comes_again() -> None:
    pools = [[{"n": (i, j)} for j in range(5)] for i in range(2)]
    rows = MixedRows(pools, [0, 1] * 12, seed=0)
    seen: list[Any] = [rows[i]["n"] for i in range(len(rows)) if rows[i]["n"][0] == 0]
    assert sorted(seen[:5]) == sorted(seen[5:10]) == [(0, j) for j in range(5)]
    assert seen[:5] != seen[5:10]
    assert [rows[i]["index"] for i in range(3)] == [0, 1, 2]
    assert rows.rounds == [12 / 5, 12 / 5]


def stage(source: str, *, streaming: bool = False, steps: int = 6) -> Stage:
    data = Data(16, (Source(source),), streaming=streaming)  # type: ignore[arg-type]
    return Stage("none", data, Training(steps, 2, warmup=0))


def test_rows_are_kept_and_read_no_text_again(tmp_path: Path) -> None:
    source = documents(tmp_path, *(words(60, seed) for seed in range(9)))

    def rows(seed: int) -> list[Row]:
        found = rows_of(stage(source), cutter(16), tmp_path / "rows", seed)
        assert isinstance(found, MixedRows)
        return [found[i] for i in range(len(found))]

    wanted = rows(1)
    Path(source.removesuffix(":text")).unlink()
    assert rows(1) == wanted
    assert rows(2) != wanted


def test_a_stream_goes_round_without_end(tmp_path: Path) -> None:
    source = documents(tmp_path, words(40), words(40, seed=1))
    rows = rows_of(stage(source, streaming=True), cutter(16), tmp_path / "rows", seed=0)
    assert isinstance(rows, StreamedRows)
    found = list(rows)
    assert [row["index"] for row in found] == list(range(12))
    assert found[0]["input_ids"] == found[4]["input_ids"]
    assert not (tmp_path / "rows").exists()
