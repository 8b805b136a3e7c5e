"""Every definition of perplexity, against the programs that it is named after."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ropex
from ropex_eval.scores.definitions import DEFINITIONS, Settings, Span, Text, explain
from ropex_eval.scores.protocol import USUAL, Protocol
from ropex_eval.study.passes import rows
from tests.support.brute_force import BRUTE, Window, losses, mean
from tests.support.models import TRAINED
from tests.support.rounding import LOSS
from tests.support.tiny_eval import corpus_of, start, study_of

BOS = 0
WITHOUT_BOS = tuple(name for name in BRUTE if name != "rolling")


def as_window(span: Span, ids: list[int]) -> Window:
    """What a span reads and scores, by the description of its fields."""
    front = [BOS] if span.bos else []
    read = [*front, *ids[span.start : span.start + span.length - len(front)]]
    places = {token: len(front) + token - span.start - 1 for token in range(span.first, span.last)}
    assert rows(span) == (places[span.first], places[span.last - 1] + 1)
    return read, [(place, ids[token]) for token, place in places.items()]


@settings(deadline=None, max_examples=200)
@given(data=st.data(), name=st.sampled_from(list(BRUTE)), with_bos=st.booleans())
def test_spans_are_the_windows_of_the_program_of_that_name(
    data: st.DataObject, name: str, with_bos: bool
) -> None:
    length = data.draw(st.integers(3, 24), "length")
    room = length - with_bos
    tokens = data.draw(st.integers(room, 80), "tokens of the text")
    stride = data.draw(st.integers(1, max(1, length - 2)), "stride")
    targets = data.draw(st.integers(1, length - 1), "targets")
    ids = [100 + token for token in range(tokens)]
    asked = Settings(targets, stride)
    if name == "rolling" and not with_bos:
        with pytest.raises(ValueError, match="give --bos"):
            DEFINITIONS[name].spans(Text(tokens, False), length, asked)
        return
    if name == "overlapping" and tokens <= length:
        assert DEFINITIONS[name].spans(Text(tokens, with_bos), length, asked) == []
        return
    spans = DEFINITIONS[name].spans(Text(tokens, with_bos), length, asked)
    expected = BRUTE[name][0](ids, length, stride, targets, BOS if with_bos else None)
    assert [as_window(span, ids) for span in spans] == expected
    for span, (read, _) in zip(spans, expected, strict=True):
        assert (span.bos, span.length) == (read[0] == BOS, len(read))


@pytest.mark.parametrize(
    ("strategy", "with_bos", "excerpt", "stride"),
    [
        ("none", True, 131, 7), ("none", False, 131, 7), ("yarn:4", True, 96, 5),
        ("dynamic", True, 131, 13), ("dynamic:4", False, 100, 10),
    ],
)  # fmt: skip
def test_numbers_are_those_of_the_programs_on_a_pass_for_every_window(
    tmp_path: Path, checkpoint: Path, causal: Any, strategy: str, with_bos: bool, excerpt: int,
    stride: int,
) -> None:  # fmt: skip
    lengths, targets = (17, TRAINED, 48), 5
    names = tuple(BRUTE) if with_bos else WITHOUT_BOS
    protocol = Protocol.of(lengths, targets, names, stride, excerpt)
    bos = BOS if with_bos else None
    study = study_of(tmp_path, checkpoint, causal, protocol, bos=bos, excerpts=2)
    results = start(study, tmp_path / "out", strategy)
    texts = [each.ids.tolist() for each in study.corpus.excerpts]
    for name in names:
        program, alike = BRUTE[name]
        for length in lengths:
            with ropex.patch(causal, strategy):
                windows = [program(text, length, stride, targets, bos) for text in texts]
                scores = [[losses(causal, window) for window in text] for text in windows]
            row = results.of(name)[strategy][length]
            assert row.nll == pytest.approx(mean(scores, alike), abs=LOSS), (name, length)
            assert row.tokens == sum(len(goals) for text in windows for _, goals in text)


def test_definitions_differ_where_it_matters(tmp_path: Path, checkpoint: Path, causal: Any) -> None:
    protocol = Protocol.of((48,), 5, tuple(BRUTE), 7, 131)
    results = start(study_of(tmp_path, checkpoint, causal, protocol), tmp_path / "out", "none")
    numbers = sorted(row.nll for row in results.results)
    assert len(numbers) == len(BRUTE)
    assert min(b - a for a, b in pairwise(numbers)) > 1e-4


def test_every_definition_is_explained_and_has_a_program() -> None:
    assert set(DEFINITIONS) - {"longppl"} == set(BRUTE)
    for name, definition in DEFINITIONS.items():
        assert definition.source
        assert "{" not in explain(name, Settings(5, None))
    assert explain("sliding", Settings(5, 7)).endswith("move on by 7 tokens")
    assert explain("sliding", Settings(5, None)).endswith("move on by L / 4")
    assert explain("passkey", Settings(5, None)) == ""


@pytest.mark.parametrize("stride", [None, 3])
def test_stride_is_a_quarter_of_each_length_unless_given(stride: int | None) -> None:
    for length in (8, 33):
        spans = DEFINITIONS["sliding"].spans(Text(100, True), length, Settings(4, stride))
        assert spans[1].start - spans[0].start == (stride or length // 4)


# The protocol.


@pytest.mark.parametrize(
    ("lengths", "targets", "used"),
    [
        ((4096, 512, 512), None, 64), ((128, 256), None, 64), ((127, 256), None, 63),
        ((8, 96), None, 4), ((2, 96), None, 1), ((3,), None, 1), ((8, 96), 7, 7), ((8, 96), 1, 1),
    ],
)  # fmt: skip
def test_targets_are_64_or_half_of_a_short_length(
    lengths: tuple[int, ...], targets: int | None, used: int
) -> None:
    protocol = Protocol.of(lengths, targets)
    assert protocol.targets == used
    assert protocol.lengths == tuple(sorted(set(lengths)))
    assert protocol.excerpt == max(lengths)
    assert protocol.definitions == USUAL


@pytest.mark.parametrize(
    ("lengths", "settings", "message"),
    [
        ((), {}, "lengths must be at least 2"),
        ((1, 8), {}, "lengths must be at least 2"),
        ((0,), {}, "lengths must be at least 2"),
        ((8, 96), {"targets": 8}, "targets is 8, it must be at least 1 and below the .* length, 8"),
        ((8, 96), {"targets": 0}, "targets is 0, it must be at least 1"),
        ((8, 96), {"targets": -1}, "targets is -1, it must be at least 1"),
        ((8, 96), {"stride": 0}, "stride is 0, it must be at least 1"),
        ((8, 96), {"stride": -2}, "stride is -2, it must be at least 1"),
        ((8, 96), {"stride": 7}, "stride is 7, it must be .* below the shortest length less one"),
        ((8, 96), {"excerpt": 95}, "excerpts of 95 tokens do not hold the longest length, 96"),
        ((8, 96), {"excerpt": 0}, "excerpts of 0 tokens do not hold"),
        ((8, 96), {"definitions": ("local", "global")}, "unknown definition 'global'; known: loc"),
        ((8, 96), {"definitions": ("",)}, "unknown definition ''"),
    ],
)
def test_impossible_protocol_is_refused(
    lengths: tuple[int, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol.of(lengths, **settings)


def test_repeated_definitions_count_once() -> None:
    assert Protocol.of((8,), definitions=("fixed", "local", "fixed")).definitions == (
        "fixed",
        "local",
    )


@pytest.mark.parametrize(
    ("definition", "length", "excerpt"), [("overlapping", 48, 48), ("second_half", 2, 48)]
)
def test_definition_with_nothing_to_score_is_refused_before_anything_is_read(
    tmp_path: Path, checkpoint: Path, causal: Any, definition: str, length: int, excerpt: int
) -> None:
    protocol = Protocol.of((length,), 1, ("local", definition), None, excerpt)
    study = study_of(tmp_path, checkpoint, causal, protocol)
    with pytest.raises(ValueError, match=f"{definition} has nothing to score at {length} tokens"):
        start(study, tmp_path / "out", "none")
    assert not (tmp_path / "out").exists()


def test_excerpts_have_room_for_what_is_scored_and_no_more(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "texts", 50)
    assert corpus.text == Text(49, True)
    for name in BRUTE:
        for span in DEFINITIONS[name].spans(corpus.text, 24, Settings(4, 5)):
            assert 0 <= span.start < span.first + span.bos <= span.last <= 49
            assert span.start + span.length - span.bos <= 49
            assert torch.numel(corpus.excerpts[0].ids) == 49
