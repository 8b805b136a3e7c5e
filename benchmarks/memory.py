"""Peak memory of scoring one long text, above that of the loaded model. Linux only.

Each way runs in a fresh process: the model is built and run on a few tokens, freed blocks go back
to the system, the kernel's peak (VmHWM) is reset, and the text is scored. The result is
the peak minus the resident memory before. For ropex it includes building the scorer.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch

from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.protocol import Protocol
from ways import plain_nll, plain_table, random_llama, random_text, ropex_table


def main() -> None:
    """Print the table; with `--way`, measure one way in this process and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="processes a way (default 3)")
    parser.add_argument("--length", type=int, default=4096, help="tokens (default 4096)")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="default 128256")
    parser.add_argument("--way", choices=["plain", "ropex"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(extra_peak(args.way, args.length, args.vocabulary)))
        return
    peaks: dict[str, float] = {}
    print(f"{'way':>5}  {'extra peak':>12}  mean NLL")
    for way in ("plain", "ropex"):
        runs = [in_a_fresh_process(way, args.length, args.vocabulary) for _ in range(args.repeats)]
        peaks[way], mean = sorted(runs)[len(runs) // 2]
        print(f"{way:>5}  {peaks[way]:8.0f} MiB  {mean:.6f}")
    print(f"ratio  {peaks['plain'] / peaks['ropex']:11.1f}x")


def in_a_fresh_process(way: str, length: int, vocabulary: int) -> tuple[float, float]:
    """Run this script for one way; see `extra_peak`."""
    command = [sys.executable, __file__, "--way", way]
    command += ["--length", str(length), "--vocabulary", str(vocabulary)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    peak, mean = json.loads(output)
    return float(peak), float(mean)


def extra_peak(way: str, length: int, vocabulary: int) -> tuple[float, float]:
    """MiB above the loaded model, and the mean NLL, which shows that both did the work."""
    model = random_llama(layers=4, hidden=256, vocabulary=vocabulary, dtype=torch.bfloat16)
    ids = random_text(length, vocabulary)
    protocol = Protocol.of([length], definitions=("local", "prefix"))
    plain_nll(model, ids[:8])  # what torch and transformers load at the first call
    before = resident_after_trim()
    if way == "plain":
        table = plain_table(model, ids, protocol)
    else:
        table = ropex_table(Scorer(model), ids, protocol)
    peak = status("VmHWM") - before
    return peak, float(table["prefix", length].double().mean())


def resident_after_trim() -> float:
    """Give freed blocks back, reset the kernel's peak, and return what is left, in MiB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def status(field: str) -> float:
    """A field of the kernel's status of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) / 1024


if __name__ == "__main__":
    main()
