"""The arguments of `ropex eval`. Those without a default have that of `ropex_eval.Evaluation`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ropex.cli.common import add_lift, add_model, argument, size
from ropex.sizes import parse_sizes

SETTINGS = (
    "lengths", "definitions", "targets", "stride", "short", "evaluator", "data", "excerpts",
    "excerpt", "bos", "tasks", "depths", "samples", "lm_eval", "lm_eval_limit", "trained_length",
    "lift_sliding_window", "trust_remote_code", "dtype", "device", "device_map", "budget",
    "max_memory", "cp", "force",
)  # fmt: skip
"""The arguments that are attributes of `ropex_eval.Evaluation`, under the same name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that `ropex eval` takes."""
    add_model(parser)
    _add_what(parser)
    _add_tasks(parser)
    _add_text(parser)
    _add_device(parser)
    _add_effort(parser)
    instead = parser.add_argument_group("instead of a run")
    one = instead.add_mutually_exclusive_group()
    one.add_argument(
        "--dry-run", action="store_true",
        help="say what it would take: passes, tokens, time and memory; no weights are loaded",
    )  # fmt: skip
    one.add_argument(
        "--check", action="store_true",
        help="prove on the model that what is done to be fast changes no number (default: of none "
        "and yarn:4, at 256 and 512 tokens)",
    )  # fmt: skip
    where = parser.add_argument_group("where the results go")
    where.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: runs/MODEL")
    where.add_argument("--force", action="store_true", help="replace a run of a different model")
    where.add_argument("--json", action="store_true", help="print JSON, and no table")


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "-s", "--strategy", action="append", default=[], metavar="S",
        help="a strategy, such as yarn:4, or @FILE for what a config.json, a CSV of LongRoPE's "
        "factors or a recipe says; may be repeated (default: yarn to the longest length); "
        "none is always measured, for the others are compared with it; ropex strategies lists them",
    )  # fmt: skip
    add_definitions(group)


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("retrieval tasks")
    group.add_argument(
        "--tasks", type=names, metavar="T",
        help="tasks to ask as well: passkey, niah, niah_multikey, niah_multivalue, "
        "niah_multiquery, kv, vt, cwe, fwe, induction; ropex tasks lists them",
    )  # fmt: skip
    group.add_argument(
        "--depths", type=_depths, metavar="D",
        help="where answers stand, from 0 to 1 (default: 0,0.25,0.5,0.75,1)",
    )  # fmt: skip
    group.add_argument(
        "--samples", type=int, metavar="N", help="contexts of each length and task (default: 4)"
    )
    group.add_argument(
        "--lm-eval", type=names, metavar="SUITE",
        help="suites that lm-evaluation-harness runs on each patched model, such as ruler",
    )  # fmt: skip
    group.add_argument(
        "--lm-eval-limit", type=int, metavar="N",
        help="examples of each of its tasks (default: all)",
    )  # fmt: skip


def add_definitions(group: argparse._ActionsContainer) -> None:
    """Add what says which numbers are wanted."""
    group.add_argument(
        "--lengths", type=argument(parse_sizes), metavar="L",
        help="256,1k,4k or 256..4k (doubling) or 1k..8k:1k (steps); default: a quarter of the "
        "trained length to four times as much",
    )  # fmt: skip
    group.add_argument(
        "--definitions", type=names, metavar="D",
        help="of perplexity: local, fixed, prefix (default: these three), sliding, window_mean, "
        "disjoint, rolling, second_half, overlapping, mean_perplexity, longppl; none for none",
    )  # fmt: skip
    group.add_argument(
        "--targets", type=size, metavar="N",
        help="tokens that local and fixed-target perplexity are taken over (default: 64, or half "
        "of a shortest length below 128)",
    )  # fmt: skip
    group.add_argument(
        "--stride", type=size, metavar="N",
        help="tokens from one sliding window to the next (default: a quarter of each length)",
    )  # fmt: skip
    group.add_argument(
        "--short", type=size, metavar="N",
        help="context that longppl compares with (default: an eighth of each length, at most 4k)",
    )  # fmt: skip
    group.add_argument(
        "--evaluator", metavar="S",
        help="strategy of the run that tells which tokens longppl is over (default: none)",
    )  # fmt: skip


def _add_text(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on which text")
    group.add_argument(
        "--data", metavar="TEXT",
        help="a text file, a folder of them, FILE.jsonl:FIELD, hf:NAME[:SPLIT[:FIELD]], or stdlib: "
        "modules of Python's own library (default)",
    )  # fmt: skip
    group.add_argument(
        "--excerpts", type=int, metavar="N", help="pieces of text to read (default: 32; 1 to check)"
    )
    group.add_argument(
        "--bos", metavar="TOKEN",
        help="the token in front of what is read: auto for the tokenizer's own, none, or a token",
    )  # fmt: skip


def _add_device(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model runs")
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"),
        help="auto is the checkpoint's on an accelerator, float32 on a CPU",
    )  # fmt: skip
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument(
        "--device-map", choices=("auto", "balanced", "sequential"),
        help="spread a model that is larger than one device over all, as accelerate does",
    )  # fmt: skip
    add_lift(group)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how much is read")
    group.add_argument(
        "--excerpt", type=size, metavar="N",
        help="tokens of each (default: the longest length; windows slide in longer ones)",
    )  # fmt: skip
    group.add_argument(
        "--budget", type=_seconds, metavar="TIME",
        help="such as 20m or 1h30m: begin no more excerpts than fit; all strategies read the same",
    )  # fmt: skip
    group.add_argument(
        "--max-memory", type=argument(_bytes), metavar="SIZE",
        help="such as 20GiB, for weights and passes: longer texts are read in pieces",
    )  # fmt: skip
    group.add_argument(
        "--cp", type=int, metavar="N",
        help="split each text over N processes of accelerate launch; without it they share texts",
    )  # fmt: skip


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name.strip() for name in text.split(","))


def _depths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are not depths; write 0,0.5,1") from None


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    if not found or not any(found.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90s, 20m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(3600 * hours + 60 * minutes + seconds)


def _bytes(text: str) -> int:
    from ropex_eval.measure.memory import parse_bytes

    return parse_bytes(text)
