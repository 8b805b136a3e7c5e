"""One picture of a run: perplexity against length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ropex.files.writing import atomically
from ropex.sizes import format_size
from ropex_eval.report.terminal import HUGE
from ropex_eval.scores.definitions import HEADLINE, explain
from ropex_eval.scores.results import Result, Results

_HUGE_STYLE: dict[str, Any] = {"marker": "^", "markersize": 7, "linestyle": "none"}
_PANELS = 3
_Row = dict[int, Result]


def plot(results: Results, path: Path) -> None:
    """Perplexity against length, one line a strategy, the trained length marked.

    Infinite or very large values are triangles at the upper edge.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a name is a $
        figure = _picture(results)
    with atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _picture(results: Results) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    protocol, model = results.protocol, results.about["model"]
    named = protocol.definitions
    names = [name for name in named if name in HEADLINE] or named[:_PANELS]
    tables = {name: results.of(name) for name in names}
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    low, high = _range(
        each.perplexity for t in tables.values() for row in t.values() for each in row.values()
    )
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        _draw(axis, table, protocol.lengths, high)
        _scale_lengths(axis, protocol.lengths, model["trained_length"])
        axis.set_title(name, fontsize=11, fontweight="bold", pad=18)
        explanation = f"perplexity of {explain(name, protocol.settings)}"
        axis.annotate(explanation, (0.5, 1), (0, 6), "axes fraction", "offset points",
                      ha="center", fontsize=8)  # fmt: skip
    _scale_perplexities(axes[0], low, high)
    figure.suptitle(_title(model, protocol.lengths))
    _add_legend(figure, axes)
    return figure


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Ends of the axis of perplexities, with a margin."""
    known = [value for value in values if value > 0]  # not a number is not
    shown = [value for value in known if value < HUGE] or [1.0, 10.0]
    low, high = min(shown), max(shown)
    margin = math.exp(max(0.05 * math.log(high / low), 0.02))
    return low / margin, high * (margin**3 if any(value >= HUGE for value in known) else margin)


def _draw(axis: Any, table: dict[str, _Row], lengths: Sequence[int], top: float) -> None:
    others = [text for text in table if text != "none"]
    for text, values in table.items():
        style = {"color": "0.25", "linestyle": "--"} if text == "none" else _style(others, text)
        shown = [min(values[n].perplexity, top) for n in lengths]
        axis.plot(lengths, shown, marker="o", markersize=3, label=text, **style)
        _draw_interval(axis, values, lengths, top, style["color"])
        if huge := [n for n in lengths if values[n].perplexity >= HUGE]:
            axis.plot(huge, [top] * len(huge), **_HUGE_STYLE, color=style["color"], clip_on=False)
    axis.set_xlabel("length L in tokens")
    axis.grid(alpha=0.2)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_interval(axis: Any, values: _Row, lengths: Sequence[int], top: float, color: str) -> None:
    """The 95 % interval as a band, where there is one."""
    ends = [(n, values[n].low, values[n].high) for n in lengths]
    known = [(n, low, min(high, top)) for n, low, high in ends if low and high and low < top]
    if known:
        axis.fill_between(*zip(*known, strict=True), color=color, alpha=0.12, linewidth=0)


def _style(texts: Sequence[str], text: str) -> dict[str, str]:
    """A colour for each strategy, and different dashes after the ten colours."""
    turn, colour = divmod(texts.index(text), 10)
    return {"color": f"C{colour}", "linestyle": ("-", "-.", ":")[turn % 3]}


def _scale_lengths(axis: Any, lengths: Sequence[int], trained: int) -> None:
    """Ticks at measured lengths, and at the trained length where it is near them."""
    first, last = lengths[0], lengths[-1]
    margin = max((last / first) ** 0.04, 1.02)
    axis.set_xscale("log", base=2)
    axis.minorticks_off()
    axis.set_xticks(_apart(lengths), map(format_size, _apart(lengths)))
    if _near(trained, lengths):
        axis.axvline(trained, color="0.6", linewidth=1, linestyle=":", zorder=0)
        first, last = min(first, trained), max(last, trained)
    axis.set_xlim(first / margin, last * margin)


def _near(trained: int, lengths: Sequence[int]) -> bool:
    return lengths[0] <= 2 * trained and trained <= 2 * lengths[-1]


def _apart(lengths: Sequence[int]) -> list[int]:
    """Lengths whose labels fit side by side: doublings, if there are enough."""
    doubled = [n for n in lengths if math.log2(n / lengths[0]).is_integer()]
    chosen = [lengths[0]]
    for length in doubled if 2 * doubled[-1] > lengths[-1] else lengths:
        if length > chosen[-1] * (lengths[-1] / lengths[0]) ** (1 / 8):
            chosen.append(length)
    return chosen


def _scale_perplexities(axis: Any, low: float, high: float) -> None:
    """Three ticks or more, however narrow the range; only powers of ten if it is wide."""
    from matplotlib.ticker import MaxNLocator

    steps = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 5)]
    shown = [value for value in steps if low <= value <= high]
    if len(shown) > 10:
        shown = [value for value in shown if math.log10(value).is_integer()]
    elif len(shown) < 3:
        fine = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        shown = [value for value in fine if low <= value <= high]
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_yticks(shown, [f"{value:g}" for value in shown])
    axis.set_ylim(low, high)
    axis.set_ylabel("perplexity")


def _title(model: dict[str, Any], lengths: Sequence[int]) -> str:
    name, trained = Path(model["id"]).name, model["trained_length"]
    short = name if len(name) <= 36 else f"{name[:35]}…"
    marked = " (dotted)" if _near(trained, lengths) else ""
    return f"{short}, trained at {format_size(trained)} tokens{marked}"


def _add_legend(figure: Any, axes: Sequence[Any]) -> None:
    """Name the lines to the right of all axes, in a figure that has room for them."""
    from matplotlib.lines import Line2D

    lines = [line for axis in axes for line in axis.get_lines()]
    handles = [line for line in axes[0].get_lines() if not line.get_label().startswith("_")]
    if any(line.get_marker() == _HUGE_STYLE["marker"] for line in lines):
        handles.append(Line2D([], [], **_HUGE_STYLE, color="0.5", label="1e6 or more"))
    legend = figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    box = legend.get_window_extent(figure.canvas.get_renderer())
    width, height = box.width / figure.dpi, box.height / figure.dpi
    figure.set_size_inches(0.7 + 4.7 * len(axes) + width, max(4.4, height + 0.5))
