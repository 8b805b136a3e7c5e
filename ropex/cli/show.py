"""`ropex show`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ropex.cli.common import (
    Verbs,
    add_model,
    add_strategy,
    add_verb,
    count,
    quiet,
    read_model,
    refuse,
    size,
)
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.advice.comparison import Comparison, Effect


def add_verbs(verbs: Verbs) -> None:
    """Add `show`."""
    parser = add_verb(
        verbs, "show", _show,
        "compare what strategies would change in a model, without loading its weights",
        "ropex show ./llama -s yarn:4 -s ntk:4 --png ropes.png",
    )  # fmt: skip
    add_model(parser)
    add_strategy(parser, "a strategy, once for each", action="append", default=[])
    parser.add_argument(
        "--length", type=size, metavar="N",
        help="tokens at which to show strategies that depend on the length (default: the target of "
        "each, or four times the trained length)",
    )  # fmt: skip
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a picture as well")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")


def _show(arguments: argparse.Namespace) -> None:
    if arguments.png is None:
        refuse(arguments, "is for a picture (--png)", "force")
    else:
        _check_png(arguments.png, arguments.force)
    quiet()
    from ropex.advice.comparison import Comparison, Effect
    from ropex.config.from_file import read_strategy
    from ropex.patching.handle import patch

    _, model, rope = read_model(arguments, weights=False)
    effects = []
    for text in arguments.strategy:
        with patch(model, read_strategy(text), trained_length=arguments.trained_length) as patched:
            effects.append(Effect.of(patched, arguments.length))
    about = Comparison.of(arguments.model, model.config.model_type, rope, effects)
    if arguments.png:
        from ropex.advice.pictures import compare

        compare(about, arguments.png)
    print(json.dumps(asdict(about), indent=2) if arguments.json else _table(about))


def _check_png(path: Path, force: bool) -> None:
    """Refuse a picture that could not be written, before any work."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--png {path}: name a file that ends in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--png {path}: there is no folder {path.parent}")
    if path.exists() and (path.is_dir() or not force):
        raise FileExistsError(f"{path} exists; --force replaces a file")


def _table(about: Comparison) -> str:
    from ropex_eval.report.terminal import align

    trained, strategies = about.trained_length, about.strategies
    head = (
        f"{about.model}: {about.model_type}, trained at {format_size(trained)} tokens, "
        f"rope_theta {about.rope_theta:g}, {about.rotary_dim} rotated dimensions"
    )
    rows = [["pair", "wavelength", "turns", *(shown.strategy for shown in strategies), ""]]
    for pair, wave in enumerate(about.wavelengths):
        stretches = [_stretch(shown.stretch[pair], wave) for shown in strategies]
        critical = "<- critical" if pair == about.critical_pair else ""
        length = "none" if wave is None else f"{wave:.1f}"
        rows.append([str(pair), length, f"{about.turns[pair]:.2f}", *stretches, critical])
    lines = [head, "", align(rows)]
    lines += ["", *map(_summary, strategies)] if strategies else []
    return "\n".join([*lines, "", *_notes(about)])


def _stretch(value: float | None, wave: float | None) -> str:
    if value is None:
        return "-" if wave is None else "stops"
    if value < 1000:
        return f"x {value:.3g}"
    return f"x {value:.0e}".replace("e+0", "e").replace("e+", "e")


def _summary(shown: Effect) -> str:
    """One line on a strategy: which pairs it keeps, and whether a config can hold it."""
    stretch = [value for value in shown.stretch if value is not None]
    most = max(stretch, default=1.0)
    kept = sum(abs(value - 1) <= 1e-6 for value in stretch)
    full = sum(value >= most * (1 - 1e-6) for value in stretch) if most > 1 + 1e-6 else 0
    parts = [f"{count(kept, 'pair')} kept, {len(stretch) - kept - full} between"]
    parts[0] += f", {full} at x {most:.3g}" if full else ""
    parts[0] += f", {shown.stopped} stopped" if shown.stopped else ""
    if outside := shown.inside.count(False):
        parts.append(f"{count(outside, 'pair')} beyond the trained angles")
    if shown.attention_scale != 1:
        parts.append(f"cos and sin x {shown.attention_scale:.4f}")
    if shown.query_scale:
        parts.append(f"queries x {shown.query_scale}")
    if not shown.saved:
        parts.append("cannot be saved in a config")
    return f"{shown.strategy} at {format_size(shown.at_length)} tokens: {'; '.join(parts)}"


def _notes(about: Comparison) -> list[str]:
    """What the marks mean, and at which length strategies are shown that go by it."""
    trained, pair = format_size(about.trained_length), about.critical_pair
    notes = [f"No pair makes a full turn within {trained} tokens."]
    if pair is not None:
        notes = [
            f"Pair {pair} is the critical one: the last that makes a full turn within {trained} "
            f"tokens (critical dimension {about.critical_dimension} of {about.rotary_dim})."
        ]
    growing = [s.strategy for s in about.strategies if s.length_class != "static"]
    if growing:
        notes.append(f"Shown at one length of many: {', '.join(growing)} (--length shows another).")
    return notes
