"""Excerpts: how they are cut out of texts, kept, and told apart."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from ropex_eval.study.corpus import Corpus, Excerpt, load_corpus
from ropex_eval.study.passes import Pass
from tests.support.models import tiny_tokenizer
from tests.support.tiny_eval import words

TOKENIZER = tiny_tokenizer()
BOS_ID = 0


def folder_of(folder: Path, *sizes: int) -> str:
    """A folder of documents of these numbers of tokens: a.txt, b.txt, ..."""
    for index, size in enumerate(sizes):
        (folder / f"{chr(97 + index)}.txt").write_text(words(size, seed=index), encoding="utf-8")
    return str(folder)


def cut(source: str, length: int, excerpts: int, bos: int | None = BOS_ID) -> Corpus:
    return load_corpus(source, TOKENIZER, bos, length, excerpts)


def places(corpus: Corpus) -> list[tuple[str, int]]:
    return [(excerpt.document[0], excerpt.start) for excerpt in corpus.excerpts]


@pytest.mark.parametrize(
    ("sizes", "excerpts", "expected", "too_short"),
    [
        ((35,), 9, [("a", 0), ("a", 10), ("a", 20)], 0),
        ((35,), 2, [("a", 0), ("a", 10)], 0),
        ((10, 30, 20), 9, [("a", 0), ("b", 0), ("c", 0), ("b", 10), ("c", 10), ("b", 20)], 0),
        ((10, 30, 20), 4, [("a", 0), ("b", 0), ("c", 0), ("b", 10)], 0),
        ((30, 30, 30), 2, [("a", 0), ("b", 0)], 0),
        ((9, 10, 3, 19), 9, [("b", 0), ("d", 0)], 2),
    ],
)
def test_every_document_gives_its_first_excerpt_before_any_a_second(
    tmp_path: Path, sizes: tuple[int, ...], excerpts: int, expected: list[tuple[str, int]],
    too_short: int,
) -> None:  # fmt: skip
    corpus = cut(folder_of(tmp_path, *sizes), 11, excerpts)
    assert places(corpus) == expected
    assert corpus.too_short == too_short
    assert corpus.documents == list(dict.fromkeys(f"{name}.txt" for name, _ in expected))


@pytest.mark.parametrize(("bos", "size"), [(BOS_ID, 10), (None, 11)])
def test_excerpts_are_the_documents_own_tokens(tmp_path: Path, bos: int | None, size: int) -> None:
    corpus = cut(folder_of(tmp_path, 3 * size), 11, 9, bos)
    whole = TOKENIZER(words(3 * size), add_special_tokens=False)["input_ids"]
    assert [excerpt.start for excerpt in corpus.excerpts] == [0, size, 2 * size]
    assert torch.cat([excerpt.ids for excerpt in corpus.excerpts]).tolist() == whole


@pytest.mark.parametrize("bos", [BOS_ID, None])
def test_text_one_token_too_short_is_refused_with_both_numbers(
    tmp_path: Path, bos: int | None
) -> None:
    needed = 10 if bos is None else 9
    source = folder_of(tmp_path, needed - 1, needed - 2)
    with pytest.raises(ValueError, match=rf"a\.txt, has {needed - 1} tokens, and {needed} are"):
        cut(source, 10, 4, bos)
    assert len(cut(source, 9, 4, bos).excerpts) == 1


@pytest.mark.parametrize(("bos", "front"), [(BOS_ID, [BOS_ID]), (None, [])])
def test_pass_reads_its_tokens_with_bos_in_front_and_nowhere_else(
    tmp_path: Path, bos: int | None, front: list[int]
) -> None:
    corpus = cut(folder_of(tmp_path, 30), 12, 2, bos)
    for index, excerpt in enumerate(corpus.excerpts):
        text = excerpt.ids.tolist()
        assert BOS_ID not in text
        for start in (0, 3):
            for length in (2, 3, 7):
                end = start + length - len(front)
                for last in (length - 1, length):  # where the next token is scored, it is there
                    one = Pass(index, start, bool(front), length, length, ((0, 1), (1, last)))
                    ids = [*front, *text[start:end], *text[end : end + (last == length)]]
                    assert one.ids(corpus).tolist() == ids


def test_text_that_spells_bos_does_not_become_bos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the <s> of html, " * 3, encoding="utf-8")
    corpus = cut(str(tmp_path), 40, 1)
    assert BOS_ID not in corpus.excerpts[0].ids.tolist()


def test_hash_follows_the_tokens_and_not_the_names(tmp_path: Path) -> None:
    corpus = cut(folder_of(tmp_path, 30), 11, 2)
    first, second = corpus.excerpts
    other = Excerpt(first.document, first.start, first.ids.flip(0))
    renamed = tuple(dataclasses.replace(excerpt, document="x") for excerpt in corpus.excerpts)
    same = dataclasses.replace(corpus, source="elsewhere", excerpts=renamed)
    assert same.sha256 == corpus.sha256
    changed = [
        dataclasses.replace(corpus, bos=None),
        dataclasses.replace(corpus, bos=1),
        dataclasses.replace(corpus, excerpts=(first,)),
        dataclasses.replace(corpus, excerpts=(second, first)),
        dataclasses.replace(corpus, excerpts=(other, second)),
    ]
    assert len({corpus.sha256, *(one.sha256 for one in changed)}) == 1 + len(changed)


def test_long_data_sets_are_read_only_as_far_as_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def endless(source: str) -> Any:
        number = 0
        while True:
            taken.append(f"{source}:{number}")
            yield taken[-1], words(30, seed=number)
            number += 1

    monkeypatch.setattr("ropex_eval.study.corpus.read_texts", endless)
    assert len(cut("endless", 11, 5).excerpts) == 5
    assert len(taken) == 5


def test_more_excerpts_begin_with_the_fewer(tmp_path: Path) -> None:
    source = folder_of(tmp_path, 35, 9, 20, 50)
    most = places(cut(source, 11, 99))
    assert len(most) == 10
    for count in range(1, 11):
        corpus = cut(source, 11, count)
        assert places(corpus) == most[:count]
        assert places(cut(source, 11, 99).first(count)) == most[:count]


def test_files_with_the_same_text_are_one_document(tmp_path: Path) -> None:
    for name in "abcdefgh":
        (tmp_path / f"{name}.txt").write_text(words(30), encoding="utf-8")
    corpus = cut(str(tmp_path), 11, 8)
    assert corpus.documents == ["a.txt"]
    assert places(corpus) == [("a", 0), ("a", 10), ("a", 20)]
    assert corpus.repeated == 7
    assert len(set(corpus.clusters)) == 3
    path = tmp_path / "excerpts.safetensors"
    corpus.save(path)
    assert Corpus.load(path).repeated == 7


def test_a_document_that_differs_only_beyond_what_is_read_is_a_repeated_one(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        text = words(10, seed=0) + words(5, seed=seed)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    corpus = cut(str(tmp_path), 11, 3)
    assert (places(corpus), corpus.repeated) == ([("a", 0)], 2)


def test_excerpts_that_repeat_within_a_document_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(10) * 3 + words(10, seed=1), encoding="utf-8")
    corpus = cut(str(tmp_path), 11, 9)
    assert (places(corpus), corpus.repeated) == ([("a", 0), ("a", 30)], 0)


@pytest.mark.parametrize(("changed", "alike"), [(1, True), (6, True), (400, False)])
def test_documents_that_are_nearly_the_same_are_told(
    tmp_path: Path, changed: int, alike: bool
) -> None:
    draw = random.Random(0)
    letters = [draw.choice("abcdefghij") for _ in range(400)]
    (tmp_path / "a.txt").write_text("".join(letters), encoding="utf-8")
    for place in draw.sample(range(400), changed):
        letters[place] = "z"
    (tmp_path / "b.txt").write_text("".join(letters), encoding="utf-8")
    (tmp_path / "c.txt").write_text("".join(draw.choices("abcdefghij", k=400)), encoding="utf-8")
    corpus = cut(str(tmp_path), 401, 3)
    assert corpus.alike == ([("a.txt", "b.txt")] if alike else [])
    assert corpus.repeated == 0


@pytest.mark.parametrize(
    ("sizes", "clusters"),
    [((35,), ["a.txt:0", "a.txt:10", "a.txt:20"]), ((20, 10), ["a.txt", "b.txt", "a.txt"])],
)
def test_clusters_are_documents_or_the_excerpts_of_the_only_one(
    tmp_path: Path, sizes: tuple[int, ...], clusters: list[str]
) -> None:
    assert cut(folder_of(tmp_path, *sizes), 11, 3).clusters == clusters


@pytest.mark.parametrize("bos", [BOS_ID, None])
def test_excerpts_are_read_back_as_they_were_written(tmp_path: Path, bos: int | None) -> None:
    (tmp_path / "texts").mkdir()
    corpus = cut(folder_of(tmp_path / "texts", 35, 3, 12), 11, 4, bos)
    path = tmp_path / "excerpts.safetensors"
    corpus.save(path)
    corpus.save(path)
    read = Corpus.load(path)
    assert (read.source, read.bos, read.too_short) == (corpus.source, bos, 1)
    assert places(read) == places(corpus)
    assert read.sha256 == corpus.sha256
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, "texts"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff" * 100, save({"ids": torch.zeros(1, 2)}),
        save({"ids": torch.zeros(1, 2)}, {"ropex": "[]"}),
        save({"ids": torch.zeros(1, 2)}, {"ropex": "{}"}),
        save({"ids": torch.zeros(2)}, {"ropex": '{"source": "x", "bos": 0, "too_short": 0}'}),
        save(
            {"ids": torch.zeros(1, 2)},
            {"ropex": '{"source": "", "bos": 0, "too_short": 0, "excerpts": [["a", 0], ["b", 0]]}'},
        ),
    ],
)  # fmt: skip
def test_damaged_excerpts_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "excerpts.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"excerpts.safetensors is damaged \("):
        Corpus.load(path)
