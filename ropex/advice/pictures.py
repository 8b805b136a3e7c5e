"""Pictures of what strategies do to a rotary embedding; matplotlib is imported where it draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ropex.advice.comparison import Comparison
from ropex.files.writing import atomically
from ropex.positions import PositionMap, seen_distances
from ropex.rope import Plan, Rope
from ropex.sizes import format_size
from ropex.strategies.base import Strategy

_STOPPED: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 5, "clip_on": False}
_QUIET: dict[str, Any] = {"color": "0.6", "linewidth": 1, "zorder": 0}


def compare(about: Comparison, path: Path) -> None:
    """Wavelength and stretch against the pair, one line a strategy.

    Args:
        about: The model, and what each strategy changes.
        path: Where to write the PNG; it appears complete or not at all.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a name is a $
        figure = _comparison(about)
    with atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _comparison(about: Comparison) -> Any:
    figure = _figure(8.2, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True)
    _draw_wavelengths(upper, about)
    _draw_stretches(lower, about)
    for axis in (upper, lower):
        _mark_critical(axis, about.critical_pair)
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    _name_critical(upper, about)
    lower.set_xlabel("pair of dimensions, from the fastest to the slowest")
    name = Path(about.model).name
    short = name if len(name) <= 40 else f"{name[:39]}…"
    figure.suptitle(f"{short}, trained at {format_size(about.trained_length)} tokens")
    _add_legend(figure, upper)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(index: int) -> dict[str, Any]:
    """A colour for each strategy, and other dashes so that lines on top of each other are seen."""
    dashes = ("-", (0, (5, 2)), (0, (1, 1)), (0, (6, 1, 1, 1)))
    return {"color": f"C{index % 10}", "linestyle": dashes[index % 4], "linewidth": 1.6}


def _draw_wavelengths(axis: Any, about: Comparison) -> None:
    axis.plot(*_known(about.wavelengths), color="0.25", linestyle="--", label="as trained")
    for index, shown in enumerate(about.strategies):
        label = f"{shown.strategy} at {format_size(shown.at_length)}"
        axis.plot(*_known(shown.wavelengths), label=label, **_style(index))
    axis.set_yscale("log")
    _mark_lengths(axis, about)
    axis.set_ylabel("wavelength in tokens")


def _mark_lengths(axis: Any, about: Comparison) -> None:
    """The trained length, named below its line, and the targets above theirs, side by side."""
    trained, units = about.trained_length, ("axes fraction", "data")
    _write(axis, f"trained {format_size(trained)}", (0, trained), (2, -2), units, va="top")
    targets = sorted({shown.at_length for shown in about.strategies} - {trained})
    for place, tokens in enumerate(targets):
        _write(axis, f"target {format_size(tokens)}", (0.16 * (place % 4), tokens), (2, 2), units)
    for tokens in (trained, *targets):
        axis.axhline(tokens, linestyle=":", **_QUIET)


def _draw_stretches(axis: Any, about: Comparison) -> None:
    largest = 1.0
    for index, shown in enumerate(about.strategies):
        pairs, values = _known(shown.stretch)
        axis.plot(pairs, values, **_style(index))
        largest = max(largest, *values) if values else largest
    top = max(2.0, largest) * 1.15
    for index, shown in enumerate(about.strategies):
        moving = zip(about.wavelengths, shown.stretch, strict=True)
        stopped = [pair for pair, (old, new) in enumerate(moving) if old and new is None]
        _mark_stopped(axis, stopped, top, _style(index)["color"])
    _scale_stretch(axis, top)
    axis.set_ylabel("stretch (x: no longer turns)" if _any_stopped(about) else "stretch")


def _mark_stopped(axis: Any, pairs: Sequence[int], top: float, color: str) -> None:
    if pairs:  # an empty line that is not clipped would take room at the lower left
        axis.plot(pairs, [top] * len(pairs), color=color, **_STOPPED)


def _any_stopped(about: Comparison) -> bool:
    return any(shown.stopped for shown in about.strategies)


def _scale_stretch(axis: Any, top: float, ticks: int = 9) -> None:
    axis.set_yscale("log")
    low = min([1.0, *(min(line.get_ydata(), default=1.0) for line in axis.get_lines())])
    axis.set_ylim(low / 1.08, top)
    axis.minorticks_off()
    last = math.ceil(math.log2(top))
    step = max(1, math.ceil((last + 1) / ticks))
    powers = [2.0**n for n in range(0, last + 1, step) if 2.0**n <= top]
    axis.set_yticks(powers, [f"{value:g}" for value in powers])


def _known(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    """Pairs that turn, and their values."""
    known = [(pair, value) for pair, value in enumerate(values) if value is not None]
    return [pair for pair, _ in known], [value for _, value in known]


def _mark_critical(axis: Any, pair: int | None) -> None:
    if pair is not None:
        axis.axvline(pair, linestyle="-", **_QUIET)


def _name_critical(axis: Any, about: Comparison) -> None:
    pair, dim = about.critical_pair, about.rotary_dim
    if pair is None:
        return
    text = f"critical pair {pair} (dimension {about.critical_dimension} of {dim})"
    left = pair > dim / 4
    shift, side = ((-4, 5), "right") if left else ((4, 5), "left")
    _write(axis, text, (pair, 0), shift, ("data", "axes fraction"), ha=side)


def _write(axis: Any, text: str, at: Any, shift: Any, units: Any, **style: Any) -> None:
    """A small note in the axes, for which the layout makes no room."""
    note = axis.annotate(text, at, shift, units, "offset points", fontsize=8, color="0.4", **style)
    note.set_in_layout(False)


def _add_legend(figure: Any, axis: Any) -> None:
    """Name the lines to the right of the axes, in a figure that has room for them."""
    handles = [line for line in axis.get_lines() if not line.get_label().startswith("_")]
    legend = figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
    box = legend.get_window_extent(figure.canvas.get_renderer())
    figure.set_size_inches(6.4 + box.width / figure.dpi, max(6.4, box.height / figure.dpi + 0.6))


def draw(strategy: Strategy, rope: Rope, path: Path) -> bool:
    """A small picture of one strategy: stretch against pair, or what attention does.

    That is sharpness against position, or the distance at which keys are seen against the true
    one. Strategies that go by the length, and distances, are drawn at one, two and four times the
    trained length.

    Returns:
        Whether there is anything to draw; nothing is written otherwise.
    """
    lengths = [rope.trained_length, 2 * rope.trained_length, 4 * rope.trained_length]
    plans = {n: strategy.plan(rope, n) for n in lengths}
    last = plans[lengths[-1]]
    figure = _figure(3.6, 2.2)
    axis = figure.subplots()
    if strategy.changes_frequencies:
        shown = plans if strategy.length_class != "static" else {lengths[-1]: last}
        _draw_small_stretch(axis, shown, rope)
    elif last.positions is not None:
        _draw_distances(axis, last.positions, rope)
    elif last.changes(rope):
        _draw_sharpness(axis, last, rope)
    else:
        return False
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    _save_small(figure, path)
    return True


def _draw_small_stretch(axis: Any, plans: dict[int, Plan], rope: Rope) -> None:
    top = 4.6
    for index, (length, plan) in enumerate(plans.items()):
        moving = plan.inv_freq > 0
        pairs = torch.arange(len(moving))
        stretch = (rope.inv_freq / plan.inv_freq)[moving].tolist()
        axis.plot(pairs[moving].tolist(), stretch, color=f"C{index}", label=format_size(length))
        top = max([top, *(1.15 * each for each in stretch)])
        stopped = pairs[~moving].tolist()
        _mark_stopped(axis, stopped, top, f"C{index}")
    _scale_stretch(axis, top, ticks=5)
    turned = torch.nonzero(rope.inv_freq * rope.trained_length >= 2 * math.pi)
    _mark_critical(axis, int(turned.max()))
    axis.set_xlabel("pair", fontsize=8)
    axis.set_ylabel("stretch", fontsize=8)
    if len(plans) > 1:
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_distances(axis: Any, positions: PositionMap, rope: Rope) -> None:
    """For the last query of three lengths, which see more keys the later they are."""
    trained = rope.trained_length
    for index, times in enumerate((4, 2, 1)):
        seen = seen_distances(positions, times * trained - 1, rope.dim // 2).flip(0)
        axis.plot(
            range(len(seen)),
            seen,
            color=f"C{2 - index}",
            lw=1.2,
            label=format_size(times * trained),
        )
    axis.axhline(trained, color="0.6", lw=0.8, ls=":")
    axis.set_xlabel("true distance", fontsize=8)
    axis.set_ylabel("seen at", fontsize=8)
    axis.legend(fontsize=6, frameon=False)


def _draw_sharpness(axis: Any, plan: Plan, rope: Rope) -> None:
    """Factor of the logits of a query, by where it stands."""
    positions = torch.arange(0, 8 * rope.trained_length, 64)
    factors = torch.full(positions.shape, float(plan.attention_scale) ** 2)
    if plan.query_scale is not None:
        factors = factors * plan.query_scale(positions)
    axis.plot(positions.tolist(), factors.tolist(), color="C0")
    axis.axvline(rope.trained_length, linestyle=":", **_QUIET)
    ticks = [n * rope.trained_length for n in (1, 2, 4, 8)]
    axis.set_xticks(ticks, map(format_size, ticks))
    axis.set_ylim(0.98, max(1.2, float(factors.max()) * 1.02))
    axis.set_xlabel("position of the query", fontsize=8)
    axis.set_ylabel("logits x", fontsize=8)


def _save_small(figure: Any, path: Path) -> None:
    """Write a PNG of 32 colours, a third of the size that matplotlib writes."""
    from PIL import Image

    figure.set_dpi(150)
    figure.canvas.draw()
    picture = Image.frombuffer(
        "RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba(), "raw", "RGBA", 0, 1
    )
    picture.convert("RGB").quantize(32).save(path, optimize=True)
