"""Measure a model in the middle of its training, and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import fsdp

from ropex.model.modes import in_mode
from ropex.model.rotary import main_site, sites
from ropex.model.sites.base import Site
from ropex.model.trained_length import stated_length
from ropex.patching.stack import stack
from ropex.rope import Rope
from ropex.sizes import format_size
from ropex.strategies.registry import strategy
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.reader import Reader
from ropex_eval.scores.definitions import DEFINITIONS
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus
from ropex_eval.study.passes import batches, passes, rows


def bare(model: Any) -> Any:
    """A model without its wrappers for training; unless its weights are split."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, wrappers) or "_orig_mod" in getattr(model, "_modules", ()):
        model = model.module if isinstance(model, wrappers) else model._orig_mod
    if _is_split(model) or not hasattr(model, "peft_config"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError("prompt tuning puts tokens before the text; measure what it makes instead")
    return model.get_base_model()


def _is_split(model: nn.Module) -> bool:
    """Whether only a forward pass of the whole model gathers its weights."""
    kinds = (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    return any(isinstance(module, kinds) for module in model.modules())


@contextmanager
def undisturbed(model: Any) -> Iterator[tuple[Site, ...]]:
    """Its rotary tables; the model is in evaluation mode, and as it was at the end of the block."""
    found = sites(model)
    modules = list({id(site.module): site.module for site in found}.values())
    kept = [(module, vars(module).copy(), _buffers(module)) for module in modules]
    cards = {p.device for p in model.parameters() if p.device.type in ("cuda", "xpu")}
    kind = next(iter(cards)).type if cards else "cpu"
    try:
        random = torch.random.fork_rng(list(cards), device_type=kind)
        with in_mode(model, training=False), torch.no_grad(), random:
            yield found
    finally:
        torch.clear_autocast_cache()  # in some torch, casts made without a graph stay without
        for module, attributes, buffers in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for name, (buffer, values) in buffers.items():
                module._buffers[name] = buffer
                if not torch.equal(buffer, values):
                    buffer.copy_(values)


def _buffers(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Tables that a module owns, and their contents: some are replaced, some overwritten."""
    return {name: (each, each.clone()) for name, each in module.named_buffers(recurse=False)}


def local_nll(
    model: Any, found: tuple[Site, ...], corpus: Corpus, protocol: Protocol, batch: int,
    tell: Callable[[str], None],
) -> dict[int, list[float]]:  # fmt: skip
    """Length to the mean NLL of the targets of each excerpt.

    One pass of the longest length serves all, unless the rotation depends on the length: then each
    length has its own passes.
    """
    _check_rows(found, protocol.lengths[-1])
    scorer = _Whole(model) if _is_split(model) else Scorer(model)
    reader, by_length = Reader(scorer, tell=tell), _is_by_length(found)
    if not by_length:
        return _read_targets(reader, corpus, protocol, batch)
    scorer.chunkable = False
    scorer.model(scorer.probe()[:, :1], use_cache=False)  # transformers' own falls back only here,
    nll: dict[int, list[float]] = {}
    for length in protocol.lengths:  # and then grows with the length
        nll |= _read_targets(reader, corpus, replace(protocol, lengths=(length,)), batch)
    return nll


def _read_targets(
    reader: Reader, corpus: Corpus, protocol: Protocol, batch: int
) -> dict[int, list[float]]:
    """Length to the mean NLL of the targets of each excerpt, from one pass for all lengths."""
    longest, local = protocol.lengths[-1], DEFINITIONS["local"]
    # Of a strategy with one table, whatever it is: all lengths share it.
    todo = passes(corpus, protocol, strategy("none"), Rope.standard(2, 1.0, longest))
    read = [
        reader.read(part, [each.ids(corpus) for each in part])
        for part in batches(todo, batch * protocol.excerpt)
    ]
    nll = torch.cat(read).double()  # (excerpts, scored)
    scored = [position for first, last in todo[0].rows for position in range(first, last)]
    found = {}
    for length in protocol.lengths:
        (span,) = local.spans(corpus.text, length, protocol.settings)
        begin = scored.index(rows(span)[0])
        found[length] = nll[:, begin : begin + protocol.targets].mean(dim=1).tolist()
    return found


def _is_by_length(found: tuple[Site, ...]) -> bool:
    """Whether the rotation depends on the length, by the model itself or by a patch."""
    if any(applied.by_length for applied in stack(found)):
        return True
    return any(site.rope(2).by_length for site in found)


def trained_length(found: tuple[Site, ...]) -> int | None:
    """Tokens that the model was trained at, before it was patched; None if nothing says."""
    first = next((applied.handle for applied in stack(found)), None)
    return first.state.rope.trained_length if first else stated_length(main_site(found))


def _check_rows(found: tuple[Site, ...], longest: int) -> None:
    """Raise a ValueError if the model's own table ends before a text does."""
    said = main_site(found).said_length()
    if any(site.ends for site in found) and said is not None and said < longest:
        raise ValueError(
            f"the rotary table of this model ends at {format_size(said)} tokens, and "
            f"{format_size(longest)} are to be read; give shorter lengths, or patch it "
            "(none goes on beyond the table)"
        )


class _Whole(Scorer):
    """Scores by the forward pass of the whole model, which gathers split weights."""

    def __init__(self, model: Any) -> None:
        # Not that of Scorer, which calls parts of the model separately.
        self.model, self.device = model, model.get_input_embeddings().weight.device
        self.head_alone, self.feed_forward, self._finish = False, [], None
        self.chunkable = self._chunks_are_exact()
