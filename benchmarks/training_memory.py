"""Peak memory of one training step on one long text, above that of the loaded model. Linux only.

Each way runs in a fresh process, as in `memory.py`. A step is a forward and a backward pass; its
gradients are counted in both ways, and also printed separately. Blocks of a megabyte or more are
returned to the system when they are freed; otherwise the C library, which raises that limit to
32 MiB, would keep some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from memory import resident_after_trim, status
from ropex.train.chunked_loss import chunk_loss
from ways import random_llama, random_text


def main() -> None:
    """Print the table; with `--way`, measure one way in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="processes a way (default 3)")
    parser.add_argument("--length", type=int, default=2048, help="tokens (default 2048)")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="default 128256")
    parser.add_argument("--rows", type=int, help="of a chunk (default: those of chunk_loss)")
    parser.add_argument("--way", choices=["plain", "ropex"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(step(args.way, args.length, args.vocabulary, args.rows)))
        return
    peaks: dict[str, float] = {}
    print(f"{'way':>5}  {'extra peak':>12}  {'gradients':>12}  loss")
    for way in ("plain", "ropex"):
        runs = [in_a_fresh_process([*sys.argv[1:], "--way", way]) for _ in range(args.repeats)]
        peaks[way], gradients, loss = sorted(runs)[len(runs) // 2]
        print(f"{way:>5}  {peaks[way]:8.0f} MiB  {gradients:8.0f} MiB  {loss:.6f}")
    print(f"ratio  {peaks['plain'] / peaks['ropex']:11.1f}x")


def in_a_fresh_process(arguments: list[str]) -> tuple[float, float, float]:
    """Run this script for one way; see `step`."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    peak, gradients, loss = json.loads(output)
    return float(peak), float(gradients), float(loss)


def step(way: str, length: int, vocabulary: int, rows: int | None) -> tuple[float, float, float]:
    """MiB above the loaded model at the peak and of all gradients, and the loss."""
    model = random_llama(layers=4, hidden=256, vocabulary=vocabulary, dtype=torch.bfloat16).train()
    ids = random_text(length, vocabulary)[None]
    with chunk_loss(model, rows) if way == "ropex" else nullcontext():
        trained(model, ids[:, :8])  # what torch and transformers load at the first call
        model.zero_grad()
        before = resident_after_trim()
        loss = trained(model, ids)
        peak = status("VmHWM") - before
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    return peak, gradients / 2**20, loss


def trained(model: Any, ids: Tensor) -> float:
    """The loss of a forward and a backward pass."""
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach())


if __name__ == "__main__":
    main()
