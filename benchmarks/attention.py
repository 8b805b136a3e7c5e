"""What attention under a position map costs: a prefill and a decoded token, against plain sdpa.

Both ways run in turn on the same states and caches, on a CPU or a GPU, and the ratio of medians is
printed. Memory is what torch allocates at once in one prefill, its result included.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache

import ropex
from ropex.attention.regions import Settings, attend_in_regions
from ropex.attention.schedule import Schedule
from ropex.attention.turns import Turn
from ropex.rope import Rope
from ways import random_llama

TEXTS = ("rerope", "self_extend", "jet_long", "stretch", "dca", "lampe", "streaming")
HEADS, KEY_HEADS, DIM = 8, 2, 64


def main() -> None:
    """Print one line a strategy and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="2048,4096,8192,16384", help="with commas between")
    parser.add_argument("--trained", type=int, default=2048, help="tokens (default 2048)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default 3)")
    parser.add_argument("--layers", type=int, default=12, help="of the decoder (default 12)")
    parser.add_argument("--texts", default=",".join(TEXTS), help="strategies, with commas between")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = [int(length) for length in args.lengths.split(",")]
    texts = args.texts.split(",")
    print(f"prefill on {device}: sdpa, and how many times as long under a map (memory it adds)")
    for length in lengths:
        prefill(length, texts, args.trained, args.repeats, device)
    print(f"\na decoded token of {args.layers} layers, {lengths[-1]:,} keys in the cache")
    decode(lengths[-1], texts, args.trained, args.layers, device)


@torch.no_grad()
def prefill(length: int, texts: list[str], trained: int, repeats: int, device: str) -> None:
    """Attention of one layer over a whole text."""
    heads = HEADS, KEY_HEADS, KEY_HEADS
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    query, key, value = (
        torch.randn(1, each, length, DIM, device=device, dtype=dtype) for each in heads
    )
    rope, at = Rope.standard(DIM, 1e4, trained), torch.arange(length)
    turn, settings = Turn(rope.inv_freq), Settings(DIM**-0.5)

    def plain() -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    columns = []
    for text in texts:
        positions: Any = ropex.strategy(text).plan(rope).positions

        def mapped(positions: Any = positions) -> Tensor:
            schedule = Schedule(positions, at, at)
            return attend_in_regions(query, key, value, schedule, turn, settings)

        pairs = [(seconds(plain, device), seconds(mapped, device)) for _ in range(repeats)]
        once, times = (median(each) for each in zip(*pairs, strict=True))
        columns.append(f"{text} {times / once:.2f} ({added(mapped, device):.0f} MiB)")
    print(f"{length:>7,}: {1000 * once:8.1f} ms; {', '.join(columns)}")


@torch.no_grad()
def decode(length: int, texts: list[str], trained: int, layers: int, device: str) -> None:
    """A model that reads one more token at a time."""
    model = random_llama(layers, hidden=576, vocabulary=49152).to(device)
    model.config.max_position_embeddings = trained
    plain = tokens(model, length)
    for text in texts:
        with ropex.patch(model, text):
            mapped = tokens(model, length)
        plain = min(plain, tokens(model, length))
        print(f"{text:>12}: {1000 * plain:7.1f} ms, and {mapped / plain:.2f} times as long")


def tokens(model: Any, length: int, count: int = 12) -> float:
    """Median seconds of a token behind a filled cache."""
    config, cache = model.config, DynamicCache()
    kept = config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(2, 1, *kept, device=model.device), layer)
    cache.ropex_positions = torch.arange(length, device=model.device)[None]  # type: ignore[attr-defined]
    given = torch.tensor([[5]], device=model.device)
    return median(
        seconds(lambda: model(given, past_key_values=cache, use_cache=True), model.device.type)
        for _ in range(count)
    )


def seconds(run: Callable[[], Any], device: str) -> float:
    """Of one run."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def added(run: Callable[[], Any], device: str) -> float:
    """MiB that a run adds, its result included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
