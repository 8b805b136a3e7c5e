"""One text split over processes: each reads a slice, with the keys and values of all before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ropex.attention.gathered import GATHERED, Slices, refusal
from ropex.attention.modules import attention_modules, install
from ropex.errors import UnsupportedModel
from ropex_eval.measure.losses import Scorer, close, within


class SharedScorer(Scorer):
    """Scores one text at a time with the memory of all processes.

    Each process holds the hidden states of its slice of the text, and in each layer gathers the
    keys and values of all slices. Every strategy is the same for all processes, since it is held
    at the length of the whole text.

    Args:
        model: As for `Scorer`, the same in every process.

    Raises:
        UnsupportedModel: The attention of the model cannot be replaced.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        if not self.head_alone:
            raise UnsupportedModel(
                f"{model.config.model_type}: its logits are more than an output embedding, so a "
                "text cannot be split over processes (--cp)"
            )
        self.chunkable, self.processes = False, dist.get_world_size()
        alone = self._probed(super().nll)
        _gather(model)
        if not close(self._probed(self.nll), alone):
            raise UnsupportedModel(
                f"{model.config.model_type}: a text that is split over processes (--cp) is not "
                "read as it is by one, so the attention of this model cannot be replaced"
            )

    def _probed(self, nll: Callable[..., Tensor]) -> Tensor:
        ids = self.probe()
        return nll(ids, ids.roll(-1, 1), ((0, ids.shape[1]),))

    @torch.no_grad()
    def nll(
        self, ids: Tensor, goals: Tensor, rows: Sequence[tuple[int, int]], chunk: int | None = None
    ) -> Tensor:
        """As `Scorer.nll`; every process gives the same arguments and gets the whole result."""
        length, index, count = ids.shape[1], dist.get_rank(), dist.get_world_size()
        size = -(-length // count)
        padding = (0, size * count - length)  # behind all that is scored, so nobody sees it
        begin = index * size
        here = slice(begin, begin + size)
        mine = functional.pad(ids, padding)[:, here].to(self.device)
        wanted = functional.pad(goals, padding)[:, here].to(self.device)
        places = torch.arange(begin, begin + size, device=self.device)[None]
        ones = torch.ones_like(mine)  # without it, transformers 4 masks as if texts were packed
        states = self.decoder(mine, attention_mask=ones, position_ids=places, use_cache=False)[0]
        scored = torch.zeros(ids.shape[0], size)
        for first, last in within(rows, begin, size):
            part = slice(first - begin, last - begin)
            scored[:, part] = self._score(states[:, part], wanted[:, part]).cpu()
        whole = _gathered(scored.to(self.device), dim=1).cpu()
        return torch.cat([whole[:, first:last] for first, last in rows], dim=1)


def _gather(model: Any) -> None:
    """Let every layer of `model` attend to the slices of all processes, from now on.

    Under `sdpa`, plain causal attention has no mask, so that a mask tells of more than that.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise UnsupportedModel(refusal(config.model_type, f"in {', '.join(sorted(kinds))}"))
    try:
        model.set_attn_implementation("sdpa")
    except ValueError as error:
        raise UnsupportedModel(refusal(config.model_type, "without sdpa")) from error
    slices = Slices(partial(_gathered, dim=2), dist.get_rank())
    install(attention_modules(model, (config,)), GATHERED, slices, ExitStack())


def _gathered(part: Tensor, dim: int) -> Tensor:
    """The parts of all processes side by side."""
    whole = part.contiguous()
    parts = [torch.empty_like(whole) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, whole)
    return torch.cat(parts, dim=dim)
