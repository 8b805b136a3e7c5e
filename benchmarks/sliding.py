"""Time to score sliding windows of several lengths: a forward pass for each, or ropex.

Windows of every length start at the same places, so one pass of the longest serves all lengths; and
only the tokens that a window scores go through the output layer.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

import ropex
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.reader import BATCH_TOKENS, Reader
from ropex_eval.scores.definitions import DEFINITIONS, Span
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus, Excerpt
from ropex_eval.study.passes import batches, passes, rows
from ways import plain_nll, random_llama, random_text


def main() -> None:
    """Print both times and both sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--tokens", type=int, default=3072, help="of the text (default 3072)")
    parser.add_argument("--stride", type=int, default=256, help="default 256")
    parser.add_argument("--hidden", type=int, default=512, help="width (default 512)")
    parser.add_argument("--layers", type=int, default=6, help="default 6")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = random_llama(args.layers, args.hidden, vocabulary=32_000)
    lengths = [512, 1024, 1536, 2048]
    protocol = Protocol.of(lengths, 64, ("sliding",), args.stride, args.tokens)
    ids = random_text(args.tokens, 32_000)
    corpus = Corpus("random", (Excerpt("random", 0, ids),), None, 0)
    scorer = Scorer(model)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(args.repeats):
        began = time.perf_counter()
        plain = plain_way(model, corpus, protocol)
        times[0].append(time.perf_counter() - began)
        began = time.perf_counter()
        ours = ropex_way(scorer, corpus, protocol)
        times[1].append(time.perf_counter() - began)
    slow, fast = map(median, times)
    print(f"sliding by {args.stride}, {len(lengths)} lengths up to 2048, {args.tokens} tokens")
    print(f"plain {slow:.2f} s, ropex {fast:.2f} s: {slow / fast:.1f}x")
    print(f"sums of NLLs: {plain:.3f} and {ours:.3f}")


def plain_way(model: Any, corpus: Corpus, protocol: Protocol) -> float:
    """A forward of every window, with the logits of all its tokens."""
    total = 0.0
    for span in windows(corpus, protocol):
        text: Tensor = corpus.excerpts[0].ids[span.start : span.start + span.length]
        scored = span.last - span.first
        total += float(plain_nll(model, text)[-scored:].double().sum())
    return total


def ropex_way(scorer: Scorer, corpus: Corpus, protocol: Protocol) -> float:
    """One pass from each place where windows start; every window reads its tokens from it."""
    rope = ropex.rope_of(scorer.model)
    every = passes(corpus, protocol, ropex.strategy("none"), rope)
    reader = Reader(scorer)
    found: dict[tuple[int, int], Tensor] = {}
    for batch in batches(every, BATCH_TOKENS):
        nll = reader.read(batch, [each.ids(corpus) for each in batch])
        for each, row in zip(batch, nll, strict=True):
            places = [p for first, last in each.rows for p in range(first, last)]
            found |= {(each.start, place): value for place, value in zip(places, row, strict=True)}
    total = 0.0
    for span in windows(corpus, protocol):
        row = [found[span.start, p] for p in range(*rows(span))]
        total += float(torch.stack(row).double().sum())
    return total


def windows(corpus: Corpus, protocol: Protocol) -> list[Span]:
    """Every window of every length, once for each length that has it."""
    spans = DEFINITIONS["sliding"].spans
    return [s for n in protocol.lengths for s in spans(corpus.text, n, protocol.settings)]


if __name__ == "__main__":
    main()
