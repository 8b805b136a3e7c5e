"""Formats of numbers and names on the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Protocol

from ropex.sizes import format_size
from ropex_eval.report.page.markup import Cell, Markup, tag
from ropex_eval.report.terminal import format_perplexity

MINUS, TIMES, DASH = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
COLOURS = 6  # distinguishable with colour blindness; further lines differ by their dashes
_SIGNIFICANT = {True: "better", False: "worse"}


def styles(texts: Iterable[str], run: int = 0) -> dict[str, str]:
    """The classes that give each strategy its colour and dashes, the same in all charts.

    Args:
        texts: Text forms of the strategies.
        run: 1 for the second of two runs, whose lines have different dashes.
    """
    scaled = [text for text in texts if text != "none"]
    chosen = {
        text: f"c{place % COLOURS} d{place // COLOURS % 2 + 2 * run}"
        for place, text in enumerate(scaled)
    }
    return {text: chosen.get(text, f"c-none d{1 + 2 * run}") for text in texts}


def name(text: str, style: str) -> Markup:
    """A strategy with a sample of its line."""
    return tag("span", tag("i", class_="sample"), tag("code", text), class_=f"name {style}",
               title=text)  # fmt: skip


def model_name(about: Mapping[str, Any]) -> str:
    """Name of a model: the last part of its path or hub id."""
    known = str(about.get("model", {}).get("id", ""))
    return PurePath(known).name or known or "unnamed model"


def number(value: float) -> str:
    """A number of any size, to four digits."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    shown = f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e12 else f"{value:,.0f}"
    return shown.replace("-", MINUS)


def perplexity(value: float) -> str:
    """Three digits, as in the terminal."""
    return format_perplexity(value) if math.isfinite(value) else number(value)


def signed(value: float) -> str:
    """A difference in nats, or a log-probability."""
    return f"{value:+.3f}".replace("-", MINUS) if math.isfinite(value) else number(value)


def percent(nats: float) -> str:
    """A difference in nats as a change of perplexity: in percent, or as a factor if large."""
    if nats > math.log(10):
        return f"{TIMES}{perplexity(math.exp(nats) if nats < 700 else math.inf)}"
    if math.isnan(nats):
        return number(nats)
    value = 100 * math.expm1(nats)
    decimals = 2 if abs(value) < 0.995 else 1 if abs(value) < 9.95 else 0
    rounded = f"{value:+.{decimals}f}"
    return f"{'0' if not float(rounded) else rounded.replace('-', MINUS)} %"


def percents(low: float | None, high: float | None) -> str:
    """An interval of differences, in the form of `percent`."""
    if low is None or high is None:
        return "no interval"
    return f"{percent(low)} to {percent(high)}".replace(" % to", " to")


def effect(nll: float, low: float | None, high: float | None, note: str | None = None) -> Cell:
    """A cell with a difference, coloured only if its interval excludes 0."""
    known = low is not None and high is not None and (low > 0 or high < 0)
    span = tag("small", percents(low, high))
    content = Markup(tag("b", percent(nll)) + span)
    return Cell(content, _SIGNIFICANT[nll < 0] if known else None, note)


def plural(count: int, noun: str) -> str:
    """`1 document`, `2 documents`, from the plural."""
    return f"{count} {noun.removesuffix('s') if count == 1 else noun}"


def short(text: str, most: int = 40) -> str:
    """A strategy, truncated where a list of factors does not fit."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(texts: list[str], most: int = 3) -> str:
    """Names in a sentence, the first few of many."""
    shown = [short(text) for text in texts]
    if len(texts) > most + 1:
        shown = [*shown[:most], f"{len(texts) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def times(tokens: int, trained: int) -> str:
    """A length relative to the trained one."""
    return "as trained" if tokens == trained else f"{tokens / trained:.3g} {TIMES} trained"


def size(tokens: int) -> str:
    """`4k`, with its unit."""
    return f"{format_size(tokens)} tokens"


class _Difference(Protocol):
    @property
    def nll(self) -> float: ...
    @property
    def se(self) -> float | None: ...


def nats(difference: _Difference) -> str:
    """A difference as it was measured."""
    error = difference.se
    spread = "" if error is None else f" ± {number(error)} (standard error)"
    return f"{signed(difference.nll)}{spread} nats a token"
