"""`ropex show`."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_model, add_verb, count, quiet, read_model, size
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.patching.handle import Patch
    from ropex.rope import Rope


def add_verbs(verbs: Verbs) -> None:
    """Add `show`."""
    parser = add_verb(
        verbs,
        "show",
        _show,
        "compare what strategies would change in a model, without loading its weights",
        "ropex show ./llama -s yarn:4 -s ntk:4 --png ropes.png",
    )
    add_model(parser)
    parser.add_argument("-s", "--strategy", action="append", default=[], metavar="S",
                        help="a strategy, such as yarn:4; may be repeated")  # fmt: skip
    parser.add_argument(
        "--length",
        type=size,
        metavar="N",
        help="tokens at which strategies are shown that go by the length (default: the target of "
        "each, or four times the trained length)",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw it as well")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")


def _show(arguments: argparse.Namespace) -> None:
    from ropex.config.from_file import read_strategy
    from ropex.patching.handle import patch

    strategies = [read_strategy(text) for text in arguments.strategy]
    _check_png(arguments.png, arguments.force)
    quiet()
    _, model, rope = read_model(arguments, weights=False)
    shown = []
    for chosen in strategies:
        with patch(model, chosen, trained_length=arguments.trained_length) as patched:
            shown.append(_describe(patched, arguments.length))
    about = _about(arguments.model, model.config.model_type, rope, shown)
    if arguments.png:
        from ropex.advice.pictures import compare

        compare(about, arguments.png)
    print(json.dumps(about, indent=2) if arguments.json else _table(about))


def _check_png(path: Path | None, force: bool) -> None:
    """Refuse a picture that could not be written, before any work."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise ValueError(f"--png {path}: name a file that ends in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--png {path}: there is no folder {path.parent}")
    if path.exists() and (path.is_dir() or not force):
        raise FileExistsError(f"{path} exists; --force replaces a file")


def _about(
    name: str, model_type: str, rope: Rope, strategies: list[dict[str, Any]]
) -> dict[str, Any]:
    from ropex.advice.bounds import critical_dimension, critical_pair, turns

    return {
        "model": name,
        "model_type": model_type,
        "trained_length": rope.trained_length,
        "rope_theta": rope.base,
        "rotary_dim": rope.dim,
        "critical_pair": critical_pair(rope),
        "critical_dimension": critical_dimension(rope),
        "wavelengths": [_wavelength(value) for value in rope.inv_freq.tolist()],
        "turns": turns(rope).tolist(),
        "strategies": strategies,
    }


def _describe(patched: Patch, wanted: int | None) -> dict[str, Any]:
    """What a patch changes, at the length that it is meant for or that is asked for."""
    from ropex.advice.bounds import inside

    rope, strategy = patched.rope, patched.strategy
    length = max(patched.target_length, rope.trained_length)
    if patched.length_class != "static":
        beyond = length if length > rope.trained_length else 4 * rope.trained_length
        length = wanted or beyond
    plan = strategy.plan(rope, length)
    pairs = list(zip(rope.inv_freq.tolist(), plan.inv_freq.tolist(), strict=True))
    return {
        "strategy": str(strategy),
        "length_class": patched.length_class,
        "target_length": patched.target_length,
        "at_length": length,
        "attention_scale": float(plan.attention_scale),
        "query_scale": None if plan.query_scale is None else str(plan.query_scale),
        "stretch": [old / new if old and new else None for old, new in pairs],
        "wavelengths": [_wavelength(new) for _, new in pairs],
        "stopped": sum(bool(old) and not new for old, new in pairs),
        "inside": inside(rope, plan, length).tolist(),
        "saved": patched.in_config,
    }


def _wavelength(inv_freq: float) -> float | None:
    return 2 * math.pi / inv_freq if inv_freq else None


def _table(about: dict[str, Any]) -> str:
    from ropex_eval.report.terminal import align

    trained, strategies = about["trained_length"], about["strategies"]
    head = (
        f"{about['model']}: {about['model_type']}, trained at {format_size(trained)} tokens, "
        f"rope_theta {about['rope_theta']:g}, {about['rotary_dim']} rotated dimensions"
    )
    rows = [["pair", "wavelength", "turns", *(shown["strategy"] for shown in strategies), ""]]
    for pair, wave in enumerate(about["wavelengths"]):
        stretches = [_stretch(shown["stretch"][pair], wave) for shown in strategies]
        critical = "<- critical" if pair == about["critical_pair"] else ""
        length = "none" if wave is None else f"{wave:.1f}"
        rows.append([str(pair), length, f"{about['turns'][pair]:.2f}", *stretches, critical])
    lines = [head, "", align(rows)]
    lines += ["", *map(_summary, strategies)] if strategies else []
    return "\n".join([*lines, "", *_notes(about)])


def _stretch(value: float | None, wave: float | None) -> str:
    if value is None:
        return "-" if wave is None else "stops"
    if value < 1000:
        return f"x {value:.3g}"
    return f"x {value:.0e}".replace("e+0", "e").replace("e+", "e")


def _summary(shown: dict[str, Any]) -> str:
    """One line on a strategy: which pairs it keeps, and whether a config can hold it."""
    stretch = [value for value in shown["stretch"] if value is not None]
    most = max(stretch, default=1.0)
    kept = sum(abs(value - 1) <= 1e-6 for value in stretch)
    full = sum(value >= most * (1 - 1e-6) for value in stretch) if most > 1 + 1e-6 else 0
    parts = [f"{count(kept, 'pair')} kept, {len(stretch) - kept - full} between"]
    parts[0] += f", {full} at x {most:.3g}" if full else ""
    parts[0] += f", {shown['stopped']} stopped" if shown["stopped"] else ""
    if outside := shown["inside"].count(False):
        parts.append(f"{count(outside, 'pair')} beyond the trained angles")
    if shown["attention_scale"] != 1:
        parts.append(f"cos and sin x {shown['attention_scale']:.4f}")
    if shown["query_scale"]:
        parts.append(f"queries x {shown['query_scale']}")
    if not shown["saved"]:
        parts.append("cannot be saved in a config")
    return f"{shown['strategy']} at {format_size(shown['at_length'])} tokens: {'; '.join(parts)}"


def _notes(about: dict[str, Any]) -> list[str]:
    """What the marks mean, and at which length strategies are shown that go by it."""
    trained, pair = format_size(about["trained_length"]), about["critical_pair"]
    notes = [f"No pair makes a full turn within {trained} tokens."]
    if pair is not None:
        notes = [
            f"Pair {pair} is the critical one: the last that makes a full turn within {trained} "
            f"tokens (critical dimension {about['critical_dimension']} of {about['rotary_dim']})."
        ]
    growing = [s["strategy"] for s in about["strategies"] if s["length_class"] != "static"]
    if growing:
        notes.append(f"Shown at one length of many: {', '.join(growing)} (--length shows another).")
    return notes
