"""`ropex plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, count, quiet, read_model
from ropex.cli.eval import own_dtype, placement, protocol_of, with_baseline
from ropex.cli.eval_arguments import add_arguments
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.rope import Rope
    from ropex.strategies.base import Strategy
    from ropex_eval.running.cost import Cost
    from ropex_eval.scores.protocol import Protocol


def add_verbs(verbs: Verbs) -> None:
    """Add `plan`."""
    parser = add_verb(
        verbs,
        "plan",
        _plan,
        "tell what ropex eval would take: passes, tokens, time and memory, from the config alone",
        "ropex plan ./llama -s yarn:16 --lengths 2k..128k --dtype bfloat16 --max-memory 32GiB",
    )
    add_arguments(parser)


def _plan(arguments: argparse.Namespace) -> None:
    from ropex.config.from_file import read_strategy

    chosen = [read_strategy(text) for text in arguments.strategy]
    quiet()
    import torch

    from ropex.sizes import gib
    from ropex_eval.measure.memory import Shape
    from ropex_eval.report.terminal import align
    from ropex_eval.running.cost import cost, in_words, speed

    _, skeleton, rope = read_model(arguments, weights=False)
    protocol = protocol_of(arguments, rope.trained_length)
    device, name = placement(arguments.device, arguments.dtype)
    dtype: torch.dtype = getattr(torch, name if name != "auto" else own_dtype(skeleton))
    shape = Shape.of(skeleton, dtype)
    costs: dict[str, Cost] = {
        str(strategy): cost(shape, wanted, arguments.max_memory)
        for strategy, wanted in _passes(arguments, chosen, protocol, rope).items()
    }
    rate = speed(shape, device, dtype)
    rows = [
        [text, f"{each.passes:,}", f"{each.tokens:,}", in_words(each.work / rate)]
        for text, each in costs.items()
    ]
    worst = max(costs.values(), key=lambda each: each.peak)
    total = in_words(sum(each.work for each in costs.values()) / rate)
    pieces = f"in pieces of {worst.chunk:,}" if worst.chunk else "at once"
    texts = f"{count(arguments.excerpts, 'excerpt')} of {format_size(protocol.excerpt)} tokens"
    print(
        f"model   {arguments.model}: {skeleton.config.model_type}, "
        f"{shape.weights / 1e9:.3g} billion weights, trained at "
        f"{format_size(rope.trained_length)} tokens, {str(dtype).removeprefix('torch.')}\n"
        f"text    {texts}\n"
        f"memory  {gib(worst.peak)} at most: {gib(shape.held())} of weights, and a pass of "
        f"{format_size(worst.longest)} tokens, read {pieces}\n"
        f"time    about {total} on this {device}, once the weights are loaded\n\n"
        f"{align([['strategy', 'passes', 'tokens', 'time'], *rows])}"
    )


def _passes(
    arguments: argparse.Namespace, chosen: list[Strategy], protocol: Protocol, rope: Rope
) -> dict[Strategy, Any]:
    """The passes of each strategy, on texts that are not read."""
    import torch

    from ropex_eval.study.corpus import Corpus, Excerpt
    from ropex_eval.study.passes import passes

    bos = None if arguments.bos == "none" else 0
    ids = torch.zeros(1, dtype=torch.long).expand(protocol.excerpt - (bos is not None))
    corpus = Corpus("", (Excerpt("", 0, ids),) * arguments.excerpts, bos, 0)
    strategies = with_baseline(chosen, rope.trained_length, protocol)
    return {each: passes(corpus, protocol, each, rope) for each in strategies}
