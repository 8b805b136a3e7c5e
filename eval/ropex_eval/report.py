"""What a person sees of a run: tables in the terminal, and one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropex.sizes import format_size
from ropex_eval.results import Results

EXPLANATIONS = {
    "local": "perplexity of the last {targets} of the first L tokens",
    "fixed": "perplexity of the same {targets} tokens, read after ever more text before them",
    "prefix": "perplexity of all of the first L tokens",
}


def render(results: Results) -> str:
    """The tables of a run: strategies down, lengths across, one table for each metric."""
    protocol = results.about["protocol"]
    parts = []
    for metric in protocol["metrics"]:
        title = EXPLANATIONS[metric].format(targets=protocol["targets"])
        rows = [
            [text, *(format_perplexity(values[n]) for n in protocol["lengths"])]
            for text, values in results.of(metric).items()
        ]
        header = ["L =", *map(format_size, protocol["lengths"])]
        parts.append(f"{metric}: {title}\n{align([header, *rows])}")
    return "\n\n".join(parts)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def format_perplexity(value: float) -> str:
    """Three significant digits, and powers of ten where nobody reads digits any more."""
    if not math.isfinite(value) or value >= 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(digits, 3)}f}"


def plot(results: Results, path: Path) -> None:
    """Perplexity against length, one line a strategy, the trained length marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocol, model = results.about["protocol"], results.about["model"]
    metrics = protocol["metrics"]
    figure = Figure(figsize=(1.2 + 4.9 * len(metrics), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        _draw(axis, results.of(metric), protocol["lengths"], model["trained_length"])
        axis.set_title(metric, fontsize=11, fontweight="bold", pad=18)
        explanation = EXPLANATIONS[metric].format(targets=protocol["targets"])
        axis.annotate(explanation, (0.5, 1), (0, 6), "axes fraction", "offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes[0].set_ylabel("perplexity")
    axes[-1].legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    name = Path(model["id"]).name
    figure.suptitle(f"{name}, trained at {format_size(model['trained_length'])} tokens (dotted)")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=150)
    temporary.replace(path)


def _draw(
    axis: Any, table: dict[str, dict[int, float]], lengths: Sequence[int], trained: int
) -> None:
    axis.axvline(trained, color="0.6", linewidth=1, linestyle=":")
    others = [text for text in table if text != "none"]
    for text, values in table.items():
        style = {"color": "0.25", "linestyle": "--"} if text == "none" else _style(others, text)
        axis.plot(
            lengths, [values[n] for n in lengths], marker="o", markersize=3, label=text, **style
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = [n for n in lengths if math.log2(n / lengths[0]).is_integer()] or list(lengths)
    axis.set_xticks(ticks, [format_size(n) for n in ticks])
    low, high = axis.get_ylim()
    steps = [m * 10.0**e for e in range(-1, 7) for m in (1, 2, 5)]
    shown = [value for value in steps if low <= value <= high]
    axis.set_yticks(shown, [f"{value:g}" for value in shown])
    axis.minorticks_off()
    axis.set_xlabel("length L in tokens")
    axis.grid(alpha=0.2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _style(texts: Sequence[str], text: str) -> dict[str, str]:
    """A colour for each strategy, and other dashes once the ten colours are used up."""
    turn, colour = divmod(texts.index(text), 10)
    return {"color": f"C{colour}", "linestyle": ("-", "-.", ":")[turn % 3]}
