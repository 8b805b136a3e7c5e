"""Feed-forward parts that read a few rows at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropex.families.tiny import tiny_model
from ropex_eval.measure import losses as nll
from ropex_eval.measure.feed_forward import feed_forward, in_rows
from ropex_eval.measure.losses import Scorer
from tests.support.rounding import LOSS
from tests.support.scoring import LONG, TWO, rows_per_call, scores_of
from tests.support.tiny_eval import plain_nll


@pytest.mark.parametrize("rows", [5, 50])
def test_feed_forward_parts_read_a_few_rows_and_are_as_before_afterwards(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    parts = feed_forward(causal)
    assert [name for name, part in causal.named_modules() if part in parts] == [
        "model.layers.0.mlp",
        "model.layers.1.mlp",
    ]
    seen = rows_per_call(causal.model.layers[0].mlp.up_proj, monkeypatch)
    with in_rows(parts, rows):
        scores_of(scorer)
    assert sum(seen) == LONG
    assert max(seen) == rows
    assert all("forward" not in vars(part) for part in parts)


def test_long_texts_are_read_with_feed_forward_parts_by_rows(
    causal: Any, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nll, "ROWS", LONG - 1)
    used: list[int] = []
    real = in_rows

    def few(parts: list[nn.Module]) -> Any:
        used.append(len(parts))
        return real(parts, 9)

    monkeypatch.setattr(nll, "in_rows", few)
    scores_of(scorer, TWO[:, :-1], ((0, LONG - 2),))
    assert used == []
    scores = scores_of(scorer)
    assert used == [2]
    plain = torch.stack([plain_nll(causal, row) for row in TWO])
    torch.testing.assert_close(scores.double(), plain, rtol=0, atol=LOSS)


class Neighbours(nn.Module):
    """What looks like a feed-forward part, but lets tokens see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(8))

    def forward(self, states: Tensor) -> Tensor:
        return states.cumsum(1) @ self.weight


class Pair(Neighbours):
    def forward(self, states: Tensor) -> Any:
        return states, states


@pytest.mark.parametrize("part", [Neighbours(), Pair(), nn.Identity(), nn.Embedding(8, 8)])
def test_part_that_does_not_treat_each_token_by_itself_is_left_alone(part: nn.Module) -> None:
    assert feed_forward(nn.ModuleDict({"mlp": part})) == []
    linear = nn.Linear(8, 8)
    assert feed_forward(nn.ModuleDict({"mlp": linear, "other": nn.Linear(8, 8)})) == [linear]


def test_a_part_that_wants_to_know_its_layer_is_left_alone() -> None:
    """That of zamba2 looks its layer up, in a dictionary without None."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(8, 8)

        def forward(self, states: Tensor, layer: int | None = None) -> Tensor:
            up: Tensor = self.up(states) * {0: 1.0}[layer]  # type: ignore[index]
            return up

    assert feed_forward(nn.ModuleDict({"mlp": Shared()})) == []


def test_zamba2_is_scored_as_its_own_logits_say() -> None:
    model = tiny_model("zamba2").double()
    ids = torch.arange(24)
    found = Scorer(model).nll(ids[None], ids.roll(-1)[None], ((0, 23),))[0]
    plain = plain_nll(model, ids)
    bound = 16 * torch.finfo(torch.float32).eps * float(plain.max())  # the loss is in float32
    torch.testing.assert_close(found.double(), plain, rtol=0, atol=bound)
