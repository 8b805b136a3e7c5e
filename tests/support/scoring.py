"""Two texts, and their scores in every way in which a model may read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ropex_eval.measure.losses import Scorer
from tests.support.models import tiny_tokenizer
from tests.support.tiny_eval import LENGTHS, words

LONG = LENGTHS[-1]
ALL = ((0, LONG - 1),)
SOME = ((0, 1), (7, 20), (30, 31), (60, LONG - 1))


def sequence(length: int = LONG, seed: int = 0) -> Tensor:
    text = words(length - 1, seed)
    return torch.tensor([0, *tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]])


IDS = sequence()
TWO = torch.stack([IDS, sequence(seed=5)])


def goals_of(ids: Tensor) -> Tensor:
    """The token after each; what follows the last is not known, and never scored here."""
    return torch.cat([ids[:, 1:], ids[:, :1]], dim=1)


def scores_of(
    scorer: Scorer, ids: Tensor = TWO, rows: Any = ALL, chunk: int | None = None
) -> Tensor:
    return scorer.nll(ids, goals_of(ids), rows, chunk)


def chosen(scores: Tensor, rows: Any) -> Tensor:
    return torch.cat([scores[first:last] for first, last in rows])


def rows_per_call(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that the rows of each later call of `module` are added to."""
    seen: list[int] = []
    forward = module.forward

    def counted(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(hidden.shape[-2])
        return forward(hidden, *args, **kwargs)

    monkeypatch.setattr(module, "forward", counted)
    return seen
