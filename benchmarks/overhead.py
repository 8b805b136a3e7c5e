"""What a patch costs: planning a strategy, and a forward pass of the patched model.

Forward passes of the patched and the unpatched model alternate in one process, and the median of
the ratios of neighbours is reported; the same without any patch shows the noise.
"""

from __future__ import annotations

import argparse
import time
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import Tensor

import ropex
from ropex.rope import Rope
from ways import random_llama, random_text

LLAMA_2 = Rope.standard(128, 1e4, 4096)
TEXTS = (
    "linear:4", "ntk:4", "ntk_by_parts:4", "yarn:4", "mrrope:4", "llama3:4", "ntk:2+clip:20",
    "yarn:4+resonance", "yarn:4+logn", "dynamic", "dynamic_yarn",
)  # fmt: skip
STATIC = ("none", "linear:4", "yarn:4", "ntk:2+clip:8")
BY_LENGTH = ("dynamic", "dynamic_yarn", "yarn:4+logn")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40, help="forwards of each (default 40)")
    parser.add_argument("--length", type=int, default=256, help="tokens (default 256)")
    args = parser.parse_args()
    print(f"{'strategy':>18}  planning, median of 20")
    for text in TEXTS:
        print(f"{text:>18}  {1e3 * planning(text):6.3f} ms")
    model = random_llama(layers=4, hidden=512, vocabulary=4000)
    ids = random_text(args.length, 4000)[None]
    print(f"\n{'strategy':>18}  forward of {args.length} tokens, patched over unpatched")
    print(f"{'no patch':>18}  {ratio(model, ids, None, args.pairs):6.4f}")
    for text in (*STATIC, *BY_LENGTH):
        print(f"{text:>18}  {ratio(model, ids, text, args.pairs):6.4f}", flush=True)


def planning(text: str) -> float:
    """Median seconds from the text of a strategy to its plan."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        ropex.strategy(text).plan(LLAMA_2, 8192)
        times.append(time.perf_counter() - start)
    return median(times)


def ratio(model: Any, ids: Tensor, text: str | None, pairs: int) -> float:
    """Median of patched over unpatched time, in alternating order."""
    ratios = []
    for turn in range(pairs):
        seconds = {}
        for patched in (turn % 2 == 0, turn % 2 == 1):
            around: AbstractContextManager[Any] = nullcontext()
            if patched and text is not None:
                around = ropex.patch(model, text)
            with around, torch.no_grad():
                model(ids, use_cache=False)  # the first forward after a change
                start = time.perf_counter()
                model(ids, use_cache=False)
                seconds[patched] = time.perf_counter() - start
        ratios.append(seconds[True] / seconds[False])
    return median(ratios)


if __name__ == "__main__":
    main()
