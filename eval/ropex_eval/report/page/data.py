"""What the charts draw, as JSON that cannot end the element that holds it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ropex_eval.report import tables
from ropex_eval.scores.results import Results, clusters
from ropex_eval.scores.statistics import student


def charts(results: Results, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The lines of every chart of one run, and its tables as text to be copied.

    Args:
        results: Of the run.
        chosen: Strategy to the classes of its line.
    """
    names = tables.definitions(results)
    return {
        "trained": [trained] if (trained := _trained(results)) else [],
        "perplexity": {name: perplexities(results, name, chosen) for name in names},
        "curve": _curve(results, chosen),
        "wavelengths": _wavelengths(results, chosen),
        "texts": {
            name: {form: tables.render(results, form, name) for form in ("markdown", "latex")}
            for name in names
        },
    }


def perplexities(
    results: Results, definition: str, chosen: Mapping[str, str], badge: str = ""
) -> list[dict[str, Any]]:
    """A line for each strategy: length, perplexity, and the ends of the interval."""
    safe = {each.strategy: each.safe for each in results.verdicts}
    lines = []
    for text, row in results.of(definition).items():
        points = [
            [length, *map(_number, (each.perplexity, each.low, each.high))]
            for length, each in sorted(row.items())
        ]
        lines.append(_line(badge + text, chosen[text], points, safe.get(text)))
    return lines


def embed(content: Mapping[str, Any]) -> str:
    """JSON for a `script` element, without any character that could be markup."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for each in "<>&":
        text = text.replace(each, f"\\u{ord(each):04x}")
    return text


def _trained(results: Results) -> int | None:
    known: int | None = results.about.get("model", {}).get("trained_length")
    return known


def _line(name: str, style: str, points: list[Any], ring: int | None = None) -> dict[str, Any]:
    return {"name": name, "style": style, "points": points, "ring": ring}


def _curve(results: Results, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """Loss by position, each stretch at its middle, labelled with its ends."""
    points: dict[str, list[Any]] = {}
    errors = student(max(1, (clusters(results.about) or 30) - 1))
    for each in results.curve:
        margin = None if each.se is None else errors * each.se
        ends = (None, None) if margin is None else (each.nll - margin, each.nll + margin)
        numbers = map(_number, (each.nll, *ends))
        said = f"positions {each.start} to {each.end - 1}"
        middle = (each.start + each.end - 1) / 2
        points.setdefault(each.strategy, []).append([middle, *numbers, said])
    return [
        _line(text, chosen[text], sorted(own, key=lambda p: p[0])) for text, own in points.items()
    ]


def _wavelengths(results: Results, chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """Wavelength by pair; infinite for a pair that does not turn."""
    return [
        _line(text, chosen[text], [
            [pair, _number(math.inf if value is None else value), None, None]
            for pair, value in enumerate(known["wavelengths"])
        ])
        for text, known in results.strategies.items()
        if known.get("wavelengths")
    ]  # fmt: skip


def _number(value: float | None) -> float | str | None:
    """A number for JSON, which has no infinity: JavaScript's `Number` reads these words."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
