"""Batches for a trainer: what the model sees of them, against documents and masks by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ropex
from ropex.train.collators import PackedCollator, PlainCollator, PositionCollator, isolates
from ropex.train.positions import CREAM, PoSE, RandomPositions
from tests.support.models import logits, tiny_model, tokens
from tests.support.processes import begin
from tests.support.rounding import assert_alike, rounding

DOCUMENTS = (17, 1, 12)
WINDOWED = {"mistral": {"sliding_window": 8}, "gemma2": {"sliding_window": 8}}


def cases() -> Iterator[tuple[str, str]]:
    """Families with each kind of attention that they have."""
    for family in ("llama", "qwen2", "mistral", "gemma2"):
        yield family, "eager"
        if tiny_model(family)._supports_sdpa:
            yield family, "sdpa"


def rows_of(count: int, length: int, **more: Any) -> list[dict[str, Any]]:
    return [{"input_ids": ids.tolist(), **more} for ids in tokens(length, count)]


def split(ids: Tensor) -> list[Tensor]:
    return list(ids[None].split(DOCUMENTS, 1))


# Eager attention takes its softmax in float32, whatever the model is in.
SOFTMAX = {"eager": torch.float32, "sdpa": torch.float64}

# Skipped positions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_second_chunk_sees_the_first_only_with_the_mask(attention: str, rows: int) -> None:
    model = tiny_model(attn_implementation=attention).double()
    batch = PositionCollator(PoSE(20, 80), seed=3)(rows_of(rows, 20))
    batch.pop("labels")
    causal = torch.full((20, 20), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    by_hand = logits(model, **by_name(batch, attention_mask=causal.expand(rows, 1, 20, 20)))
    seen = logits(model, **by_name(batch))
    assert_alike(seen, by_hand)

    without = logits(model, **by_name({**batch, "attention_mask": None}))
    for row in range(rows):
        start = int(batch["position_ids"][row].diff().argmax()) + 1
        alone = logits(model, batch["input_ids"][row : row + 1, start:])
        # Of float32 are cos and sin, of positions that lie apart by what was skipped.
        assert_alike(without[row : row + 1, start:], alone, dtype=torch.float32)
        assert (seen[row, start:] - alone[0]).abs().max() > 0.1


def by_name(batch: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Arguments of `logits`."""
    inputs = {**batch, **changes}
    return {"ids": inputs.pop("input_ids"), **inputs}


def test_what_is_read_keeps_its_label_but_after_a_skip() -> None:
    ids = torch.arange(40)
    batch = PositionCollator(CREAM(12, 48))([{"input_ids": ids, "labels": ids + 100, "index": 4}])
    read, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    for place, (token, label) in enumerate(zip(read, labels, strict=True)):
        skipped = place == 0 or token != read[place - 1] + 1  # nothing predicts the first
        assert label == (-100 if skipped else token + 100)
    assert -100 in labels
    assert all(part.dtype == torch.int64 for part in batch.values())
    assert all(part.shape == (1, 12) for part in batch.values())
    assert batch["attention_mask"].all()


def test_labels_are_the_tokens_and_keep_what_is_ignored() -> None:
    rows = rows_of(2, 12)
    batch = PositionCollator(PoSE(12, 48))(rows)
    assert torch.equal(batch["labels"][:, 1:], batch["input_ids"][:, 1:])
    assert batch["labels"][:, 0].eq(-100).all()
    assert torch.equal(batch["input_ids"], tokens(12, 2))
    rows[0]["labels"] = [-100] * 5 + rows[0]["input_ids"][5:]
    assert PositionCollator(PoSE(12, 48))(rows)["labels"][0].tolist() == rows[0]["labels"]


@pytest.mark.parametrize("numbered", [True, False])
def test_a_draw_goes_by_the_seed_and_the_row(numbered: bool) -> None:
    rows = [{**row, "index": i} if numbered else row for i, row in enumerate(rows_of(6, 30))]
    collate = PositionCollator(RandomPositions(10, 1000), seed=1)
    together = collate(rows)["position_ids"]
    torch.manual_seed(5)
    apart = [collate([row])["position_ids"] for row in reversed(rows)]
    assert torch.equal(together, torch.cat(apart[::-1]))
    assert len(set(map(tuple, together.tolist()))) == 6
    other = PositionCollator(RandomPositions(10, 1000), seed=2)(rows)["position_ids"]
    assert not any((a == b).all() for a, b in zip(together, other, strict=True))


def test_the_number_of_a_row_stands_for_it_in_any_type() -> None:
    collate = PositionCollator(RandomPositions(10, 1000))
    one, two = rows_of(2, 10)
    numbers = (7, torch.tensor(7), "7")
    drawn = [collate([{**row, "index": n}])["position_ids"] for row in (one, two) for n in numbers]
    assert all(torch.equal(each, drawn[0]) for each in drawn)


def test_another_process_draws_the_same(tmp_path: Path) -> None:
    script = (
        "from ropex.train.collators import PositionCollator as C\n"
        "from ropex.train.positions import PoSE\n"
        "rows = [{'input_ids': [1, 2, 3, 4]}, {'input_ids': [1, 2, 3, 4], 'index': 9}]\n"
        "print(C(PoSE(4, 10**6))(rows)['position_ids'].tolist())"
    )
    _, there, _ = begin(tmp_path, code=script).end()
    ids = [1, 2, 3, 4]
    rows: list[dict[str, Any]] = [{"input_ids": ids}, {"input_ids": ids, "index": 9}]
    assert there.strip() == str(PositionCollator(PoSE(4, 10**6))(rows)["position_ids"].tolist())


# Packed documents


def packed(rows: int, length: int = sum(DOCUMENTS)) -> dict[str, Tensor]:
    given = rows_of(rows, sum(DOCUMENTS), lengths=list(DOCUMENTS), index=0)
    return PackedCollator(length, pad_token_id=7)(given)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("family", "attention"), list(cases()))
def test_a_packed_document_reads_as_if_alone(family: str, attention: str, rows: int) -> None:
    model = tiny_model(family, attn_implementation=attention, **WINDOWED.get(family, {})).double()
    batch = packed(rows, sum(DOCUMENTS) + 6)
    seen = logits(model, batch["input_ids"], position_ids=batch["position_ids"])
    for row, ids in enumerate(tokens(sum(DOCUMENTS), rows)):
        alone = torch.cat([logits(model, part)[0] for part in split(ids)])
        assert_alike(seen[row, : sum(DOCUMENTS)], alone, dtype=SOFTMAX[attention])
    cached = logits(model, batch["input_ids"], position_ids=batch["position_ids"], use_cache=True)
    assert (cached - seen).abs().max() > 0.1  # what `isolates` is for


@pytest.mark.parametrize("strategy", ["yarn:4", "ntk:4", "eabf", "yarn:4+logn", "logn:8"])
def test_a_packed_document_reads_as_if_alone_in_a_patched_model(strategy: str) -> None:
    model = tiny_model(use_cache=False).double()
    batch = packed(2)
    with ropex.patch(model, strategy):
        assert isolates(model, rows=2)
        seen = logits(model, batch["input_ids"], position_ids=batch["position_ids"])
        for row, ids in enumerate(tokens(sum(DOCUMENTS), 2)):
            alone = torch.cat([logits(model, part)[0] for part in split(ids)])
            assert_alike(seen[row], alone)


def test_packed_documents_train_as_if_alone() -> None:
    model = tiny_model().double().train()
    batch = packed(2, sum(DOCUMENTS) + 6)
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    seen = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for ids in tokens(sum(DOCUMENTS), 2):
        for part in split(ids):
            scores = model(part, use_cache=False).logits[0, :-1]
            total = total + cross_entropy(scores, part[0, 1:], reduction="sum")
            count += part.shape[1] - 1
    (total / count).backward()
    # transformers takes the loss in float32.
    assert_alike(loss.double(), (total / count).double(), dtype=torch.float32)
    for name, weight in model.named_parameters():
        assert_alike(seen[name], weight.grad, dtype=torch.float32)


def test_a_packed_row_starts_again_and_ignores_what_others_precede() -> None:
    row = {"input_ids": [11, 12, 13, 21, 31, 32], "lengths": [3, 1, 2], "index": 5}
    batch = PackedCollator(9, pad_token_id=7)([row, {"input_ids": range(4, 13), "lengths": [9]}])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 31, 32, 7, 7, 7], list(range(4, 13))]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 0, 1, 2], list(range(9))]
    assert batch["labels"][0].tolist() == [-100, 12, 13, -100, -100, 32, -100, -100, -100]
    assert batch["labels"][1].tolist() == [-100, *range(5, 13)]
    own = PackedCollator(6)([{**row, "labels": [1, 2, -100, 4, 5, 6]}])["labels"]
    assert own.tolist() == [[-100, 2, -100, -100, -100, 6]]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_isolates_says_what_the_logits_say(family: str, cache: bool, checkpointing: bool) -> None:
    model = tiny_model(family, use_cache=cache)
    if checkpointing:
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # new, old
        next(getattr(model, name) for name in names if hasattr(model, name))()
    batch = packed(2)
    whole = []
    for training in (True, False):
        model.train(training)
        seen = model(batch["input_ids"], position_ids=batch["position_ids"]).logits[:, 17:]
        alone = model(batch["input_ids"][:, 17:18], use_cache=False).logits
        whole.append(bool((seen[:, :1] - alone).abs().max() < rounding(alone)))
    assert isolates(model, rows=2) == all(whole) == (not cache)


# When attention does not isolate (never; in more than one row, as flash attention), and what is
# then to be said of one row and of two.
LEAKS: dict[str, tuple[Callable[[bool, int], bool], list[bool]]] = {
    "never": (lambda training, rows: False, [True, True]),
    "rows": (lambda training, rows: rows > 1, [True, False]),
    "training": (lambda training, rows: training, [False, False]),
    "evaluation": (lambda training, rows: not training, [False, False]),
}


@pytest.mark.parametrize(("leaks", "kept"), LEAKS.values(), ids=list(LEAKS))
def test_isolates_sees_each_way_to_leak(
    monkeypatch: pytest.MonkeyPatch, leaks: Callable[[bool, int], bool], kept: list[bool]
) -> None:
    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **given: Any
    ) -> Any:
        keys, values = (part.repeat_interleave(2, dim=1) for part in (key, value))
        starts = (given["position_ids"][0] == 0).cumsum(0)
        allowed = (starts[:, None] == starts) | leaks(module.training, len(query))
        mask = allowed & torch.ones_like(allowed).tril()
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2), 0

    model = tiny_model(use_cache=False)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "by_hand", attend)
    assert "by_hand" not in ALL_MASK_ATTENTION_FUNCTIONS  # so transformers makes no mask
    model.config._attn_implementation = "by_hand"
    assert [isolates(model, rows) for rows in (1, 2)] == kept


def test_isolates_leaves_model_and_chance_as_they_were() -> None:
    model = tiny_model(use_cache=False, attention_dropout=0.5).train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert isolates(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


# Plain rows, and rows that are wrong


def test_plain_rows_are_stacked_and_nothing_else_is_kept() -> None:
    rows = rows_of(3, 9, lengths=[9], index=1)
    rows[1]["labels"] = [-100] * 9
    batch = PlainCollator()(rows)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert batch["attention_mask"].all()
    assert torch.equal(batch["input_ids"], tokens(9, 3))
    assert batch["labels"][1].tolist() == [-100] * 9
    assert batch["labels"][0].tolist() == [-100, *batch["input_ids"][0, 1:].tolist()]


@pytest.mark.parametrize(
    ("collate", "rows", "message"),
    [
        (PlainCollator(), [{"input_ids": [1, 2]}, {"input_ids": [1]}], "rows of 1 and 2 tokens"),
        (PlainCollator(), [{"input_ids": [1, 2], "labels": [1]}], "labels of shape"),
        (PlainCollator(), [{"input_ids": [[1, 2]]}], r"input_ids of shape \(1, 2\)"),
        (PositionCollator(PoSE(4, 8)), [{"input_ids": [1, 2]}], "does not fill the window of 4"),
        (PackedCollator(4), [{"input_ids": [1, 2]}], "no lengths; .*remove_unused_columns=False"),
        (PackedCollator(4), [{"input_ids": [1, 2], "lengths": [1]}], "do not make up a row of 2"),
        (PackedCollator(4), [{"input_ids": [1, 2], "lengths": [2, 0]}], "do not make up"),
        (PackedCollator(1), [{"input_ids": [1, 2], "lengths": [2]}], "is longer than 1"),
    ],
)
def test_wrong_rows_are_refused(collate: Any, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(rows)
