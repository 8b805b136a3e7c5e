"""Time to score many lengths of one text: a forward pass for each, or ropex.

The same model, text and process; the two ways alternate. The width of the model equals the longest
length, so that attention has the same share of the work as in a 7-billion Llama at 4096 tokens;
`--hidden` and `--longest` change that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.protocol import Protocol
from ways import Numbers, plain_table, random_llama, random_text, ropex_table


def main() -> None:
    """Print one line for every number of lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--repeats", type=int, default=5, help="of each way (default 5)")
    parser.add_argument("--longest", type=int, default=1024, help="tokens (default 1024)")
    parser.add_argument("--hidden", type=int, default=1024, help="width (default 1024)")
    parser.add_argument("--layers", type=int, default=12, help="default 12")
    parser.add_argument("--fixed", action="store_true", help="measure `fixed` as well")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = random_llama(args.layers, args.hidden, vocabulary=32_000)
    ids = random_text(args.longest, 32_000)
    names = ("local", "fixed", "prefix") if args.fixed else ("local", "prefix")
    shape = f"{args.layers} layers, width {args.hidden}"
    print(f"{shape}; definitions: {', '.join(names)}; {torch.get_num_threads()} threads")
    print(f"{'lengths':>16}  {'plain':>9}  {'ropex':>9}  {'ratio':>6}  {'NLLs differ by':>14}")
    for count in (8, 32):
        step = args.longest // count
        protocol = Protocol.of(range(step, args.longest + 1, step), definitions=names)
        plain, ours, apart = compare(model, ids, protocol, args.repeats)
        name = f"{count}, {step}..{protocol.lengths[-1]}"
        columns = f"{name:>16}  {plain:7.2f} s  {ours:7.2f} s  {plain / ours:5.1f}x  {apart:14.1e}"
        print(columns, flush=True)


def compare(
    model: Any, ids: Tensor, protocol: Protocol, repeats: int
) -> tuple[float, float, float]:
    """Median seconds of the plain way and of ropex's, and the largest difference of their NLLs."""
    scorer = Scorer(model)
    times: tuple[list[float], list[float]] = ([], [])
    worst = 0.0
    for _ in range(repeats):
        plain, seconds = timed(lambda: plain_table(model, ids, protocol))
        times[0].append(seconds)
        ours, seconds = timed(lambda: ropex_table(scorer, ids, protocol))
        times[1].append(seconds)
        worst = max(worst, distance(plain, ours))
    return median(times[0]), median(times[1]), worst


def timed(way: Callable[[], Numbers]) -> tuple[Numbers, float]:
    """What `way` returns, and how long it took."""
    start = time.perf_counter()
    table = way()
    return table, time.perf_counter() - start


def distance(plain: Numbers, ours: Numbers) -> float:
    """The largest difference of the NLL of a token, over all tokens at all lengths."""
    return max(float((plain[key] - ours[key]).abs().max()) for key in plain)


if __name__ == "__main__":
    main()
