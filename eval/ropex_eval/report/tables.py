"""Perplexities as Markdown, LaTeX or CSV: strategies down, lengths across."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence

from ropex.sizes import format_size
from ropex_eval.report.terminal import format_perplexity
from ropex_eval.scores.definitions import HEADLINE
from ropex_eval.scores.results import COLUMNS, Result, Results

_NORMAL = 1.959964  # standard errors on both sides of a mean in a 95 % interval

Rows = Sequence[Sequence[str]]
"""Cells, the header first."""


def render(
    results: Results, format: str, definition: str | None = None, intervals: bool = False
) -> str:
    """The perplexities of a run.

    Args:
        results: The results of a run.
        format: `markdown`, `latex` or `csv`.
        definition: Of perplexity; by default all, one table after the other, or in CSV one table
            with a column that names the definition.
        intervals: Add half the width of the 95 % interval to each perplexity.

    Raises:
        ValueError: No such format, or the run does not have this definition.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; choose one of {', '.join(FORMATS)}")
    chosen = definitions(results) if definition is None else (definition,)
    if unknown := set(chosen) - set(definitions(results)):
        raise ValueError(
            f"the run has no perplexity called {unknown.pop()!r}; "
            f"it has {', '.join(definitions(results)) or 'none'}"
        )
    if format == "csv":
        return csv_text(_exact(results, chosen, intervals))
    return "\n".join(FORMATS[format](rows(results, each, intervals)) for each in chosen)


def definitions(results: Results) -> tuple[str, ...]:
    """The definitions that a run has numbers for, those to look at first in front."""
    asked = results.protocol.definitions
    found = {row.definition for row in results.results}
    known = dict.fromkeys(name for name in (*asked, *sorted(found)) if name in found)
    return tuple(sorted(known, key=lambda name: name not in HEADLINE))


def lengths(results: Results, definition: str) -> list[int]:
    """The lengths that a definition has numbers for, in ascending order."""
    return sorted({row.length for row in results.results if row.definition == definition})


def rows(results: Results, definition: str, intervals: bool = False) -> Rows:
    """The table of one definition, rounded to be read, with its name in the corner."""
    columns = lengths(results, definition)
    header = [definition, *map(format_size, columns)]
    return [header] + [
        [text, *(_cell(row.get(length), intervals) for length in columns)]
        for text, row in results.of(definition).items()
    ]


def tidy(results: Results) -> Rows:
    """Every field of every perplexity at full precision, one number a row."""
    return [list(COLUMNS)] + [
        ["" if row[name] is None else str(row[name]) for name in COLUMNS] for row in results.flat()
    ]


def markdown(rows: Rows) -> str:
    """A table in GitHub's Markdown, with aligned columns."""
    cells = [[_PUNCTUATION.sub(r"\\\g<0>", _line(cell)) for cell in row] for row in rows]
    widths = [max(2, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if not place else "-" * (width - 1) + ":" for place, width in
            enumerate(widths)]  # fmt: skip
    return "".join(f"| {' | '.join(_pad(row, widths))} |\n" for row in (cells[0], rule, *cells[1:]))


def latex(rows: Rows) -> str:
    """A `tabular` with the rules of the package booktabs."""
    header, *body = ("  " + " & ".join(map(_latex, row)) + r" \\" for row in rows)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
        *(r"  \toprule", header, r"  \midrule", *body, r"  \bottomrule"),
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def csv_text(rows: Rows) -> str:
    """Comma-separated values by RFC 4180, with line feeds only."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Rows], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text}

_PUNCTUATION = re.compile(r"[\\`*_\[\]<>|~&$]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with one would be taken for an argument of \\
    "*": "{*}",
    "±": r"$\pm$",
    **{each: "\\" + each for each in "#$%&_{}"},
}


def _cell(result: Result | None, interval: bool) -> str:
    if result is None:
        return ""
    shown = format_perplexity(result.perplexity)
    half = _half_width(result)
    if not interval or half is None or "e" in shown or not math.isfinite(half):
        return shown
    decimals = len(shown.partition(".")[2])
    return f"{shown} ± {f'{half:.{decimals}f}' if round(half, decimals) else f'{half:.1g}'}"


def _half_width(result: Result) -> float | None:
    if result.low is not None and result.high is not None:
        return (result.high - result.low) / 2
    return None if result.se is None else _NORMAL * result.se * result.perplexity


def _exact(results: Results, chosen: Sequence[str], intervals: bool) -> Rows:
    columns = sorted({length for name in chosen for length in lengths(results, name)})
    marks = ("", " +-") if intervals else ("",)
    table = [["definition", "strategy", *(f"{n}{mark}" for n in columns for mark in marks)]]
    for name in chosen:
        for text, row in results.of(name).items():
            cells = (_exact_cells(row.get(length), intervals) for length in columns)
            table.append([name, text, *(value for pair in cells for value in pair)])
    return table


def _exact_cells(result: Result | None, interval: bool) -> list[str]:
    if result is None:
        return ["", ""] if interval else [""]
    half = _half_width(result)
    return [str(result.perplexity), *(["" if half is None else str(half)] if interval else [])]


def _line(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def _latex(text: str) -> str:
    return "".join(_LATEX.get(each, each) for each in _line(text))


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first cell to the left, the others to the right."""
    pairs = zip(row[1:], widths[1:], strict=True)
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in pairs)]
