"""Time to apply a strategy to a loaded model and remove it, without reading a weight.

The model is loaded from a checkpoint that is then deleted, so there is nothing left to read, and
every parameter must keep its memory, unwritten.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoModelForCausalLM

import ropex
from ways import random_llama

TEXTS = (
    "none", "linear:4", "ntk:4", "llama3:4", "yarn:4", "mrrope:4", "ntk:2+clip:20", "dynamic",
    "dynamic_yarn", "logn", "yarn:4+logn",
)  # fmt: skip


def main() -> None:
    """Print one line a strategy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32, help="default 32")
    parser.add_argument("--repeats", type=int, default=50, help="of each strategy (default 50)")
    args = parser.parse_args()
    model = loaded_model(args.layers)
    weights = weights_of(model)
    modules = sum(1 for _ in model.modules())
    print(f"{args.layers} layers, {modules} modules, {len(weights)} weights")
    print(f"{'strategy':>14}  {'first':>9}  {'median':>9}  {'slowest':>9}")
    for text in TEXTS:
        times = [swap(model, text, weights) for _ in range(args.repeats)]
        columns = (f"{1000 * t:6.2f} ms" for t in (times[0], median(times), max(times)))
        print(f"{text:>14}  {'  '.join(columns)}")
    print("every weight stayed where it was, unwritten; the checkpoint was gone")


def loaded_model(layers: int) -> Any:
    """A narrow Llama with heads of 128, read from a checkpoint that no longer exists."""
    auto: Any = AutoModelForCausalLM
    with TemporaryDirectory() as folder:
        random_llama(layers, hidden=128, vocabulary=1000, head_dim=128).save_pretrained(folder)
        return auto.from_pretrained(folder).eval()


def weights_of(model: Any) -> list[tuple[str, int, int]]:
    """Name, address and number of writes of every parameter."""
    return [(name, p.data_ptr(), p._version) for name, p in model.named_parameters()]


def swap(model: Any, text: str, weights: list[tuple[str, int, int]]) -> float:
    """Seconds to patch and to remove."""
    start = time.perf_counter()
    patch = ropex.patch(model, text)
    patched = time.perf_counter()
    if weights_of(model) != weights:
        raise RuntimeError(f"{text} touched a weight")
    resumed = time.perf_counter()
    patch.remove()
    return time.perf_counter() - resumed + patched - start


if __name__ == "__main__":
    main()
