"""`ropex patch` and `ropex show`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_model, add_verb, count, quiet, read_model
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.patching import Patch


def add_verbs(verbs: Verbs) -> None:
    """Add `patch` and `show`."""
    patch = add_verb(
        verbs,
        "patch",
        _patch,
        "write a checkpoint that computes a strategy without ropex",
        "ropex patch ./llama -s yarn:4 -o ./llama-16k",
    )
    add_model(patch)
    patch.add_argument("-s", "--strategy", required=True, metavar="S", help="such as yarn:4")
    patch.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    patch.add_argument(
        "--lift-sliding-window",
        action="store_true",
        help="let every token see all before it, in a model whose attention has a window",
    )
    patch.add_argument("--force", action="store_true", help="replace the checkpoint in OUT")
    show = add_verb(
        verbs,
        "show",
        _show,
        "show what a strategy would change in a model, without loading its weights",
        "ropex show ./llama -s yarn:4 -s ntk:4",
    )
    add_model(show)
    show.add_argument("-s", "--strategy", action="append", default=[], metavar="S")
    show.add_argument("--json", action="store_true", help="print numbers for programs")


def _patch(arguments: argparse.Namespace) -> None:
    from ropex.checkpoint import save_patched
    from ropex.patching import patch
    from ropex.registry import strategy

    chosen = strategy(arguments.strategy)
    quiet()
    folder, model, _ = read_model(arguments)
    patched = patch(
        model,
        chosen,
        trained_length=arguments.trained_length,
        lift_sliding_window=arguments.lift_sliding_window,
    )
    save_patched(folder, patched, arguments.out, force=arguments.force)
    print(f"{patched}\nwritten to {arguments.out}", file=sys.stderr)


def _show(arguments: argparse.Namespace) -> None:
    from ropex.patching import patch
    from ropex.registry import strategy

    strategies = [strategy(text) for text in arguments.strategy]
    quiet()
    _, model, rope = read_model(arguments, weights=False)
    shown = []
    for chosen in strategies:
        with patch(model, chosen, trained_length=arguments.trained_length) as patched:
            shown.append(_describe(patched))
    about = {
        "model": arguments.model,
        "model_type": model.config.model_type,
        "trained_length": rope.trained_length,
        "rope_theta": rope.base,
        "rotary_dim": rope.dim,
        "wavelengths": [_wavelength(value) for value in rope.inv_freq.tolist()],
        "strategies": shown,
    }
    print(json.dumps(about, indent=2) if arguments.json else _table(about))


def _describe(patched: Patch) -> dict[str, Any]:
    """What a patch changes, at the length that it is meant for."""
    rope = patched.rope
    length = max(patched.target_length, rope.trained_length)
    if patched.strategy.length_class != "static":
        length = max(length, 2 * rope.trained_length)
    plan = patched.strategy.plan(rope, length)
    return {
        "strategy": str(patched.strategy),
        "length_class": patched.strategy.length_class,
        "at_length": length,
        "attention_scale": plan.attention_scale,
        "query_scale": None if plan.query_scale is None else str(plan.query_scale),
        "stretch": (rope.inv_freq / plan.inv_freq).tolist(),
        "saved": patched.in_config,
    }


def _wavelength(inv_freq: float) -> float:
    return 2 * math.pi / inv_freq if inv_freq else math.inf


def _table(about: dict[str, Any]) -> str:
    from ropex_eval.report import align

    trained, strategies = about["trained_length"], about["strategies"]
    head = (
        f"{about['model']}: {about['model_type']}, trained at {format_size(trained)} tokens, "
        f"rope_theta {about['rope_theta']:g}, {about['rotary_dim']} rotated dimensions"
    )
    rows = [["pair", "wavelength", "turns", *(shown["strategy"] for shown in strategies)]]
    for pair, wave in enumerate(about["wavelengths"]):
        stretches = [f"x {shown['stretch'][pair]:.3g}" for shown in strategies]
        rows.append([str(pair), f"{wave:.1f}", f"{trained / wave:.2f}", *stretches])
    lines = [head, "", align(rows)]
    lines += ["", *map(_summary, strategies)] if strategies else []
    return "\n".join(lines)


def _summary(shown: dict[str, Any]) -> str:
    """One line on a strategy: which pairs it keeps, and whether a config can hold it."""
    stretch = shown["stretch"]
    most = max(stretch)
    kept = sum(value <= 1 + 1e-6 for value in stretch)
    full = sum(value >= most * (1 - 1e-6) for value in stretch) if most > 1 + 1e-6 else 0
    parts = [
        f"{count(kept, 'pair')} kept, {len(stretch) - kept - full} between, {full} at x {most:.3g}"
    ]
    if shown["attention_scale"] != 1:
        parts.append(f"cos and sin x {shown['attention_scale']:.4f}")
    if shown["query_scale"]:
        parts.append(f"queries x {shown['query_scale']}")
    if not shown["saved"]:
        parts.append("cannot be saved in a config")
    return f"{shown['strategy']} at {format_size(shown['at_length'])} tokens: {'; '.join(parts)}"
