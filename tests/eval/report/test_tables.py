"""Tables for papers and spreadsheets: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ropex_eval.report import tables
from ropex_eval.report.terminal import format_perplexity
from ropex_eval.scores.results import Result, Results
from tests.support.made_up import EMPTY, LENGTHS, SIX, made_up, ruined

RESULTS = made_up()
AWKWARD = [["a|b", "1_000 %"], ["50% & \\more_", "$5 #1 {x} ~ ^"], ["[one]*", "<b>\n`x`"]]


def small(*numbers: tuple[float, float | None]) -> Results:
    """One strategy, at lengths 1, 2, ..., with these means and standard errors."""
    rows = tuple(
        Result("yarn:4", "local", length, nll, math.exp(nll), se, None, None, 64)
        for length, (nll, se) in enumerate(numbers, 1)
    )
    return replace(EMPTY, strategies={"yarn:4": {}}, results=rows)


def test_markdown_has_strategies_down_and_lengths_across() -> None:
    text = tables.render(RESULTS, "markdown", "fixed")
    header, rule, *body = text.splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "fixed", "512", "1k", "2k", "4k", "8k", "16k", "32k"]  # fmt: skip
    assert re.fullmatch(r"\| -+ (\| -+: )+\|", rule)
    table = RESULTS.of("fixed")
    for line, text in zip(body, SIX, strict=True):
        shown = [format_perplexity(table[text][length].perplexity) for length in LENGTHS]
        assert [cell.strip() for cell in line.split("|")[1:-1]] == [text, *shown]
    assert len({len(line) for line in (header, rule, *body)}) == 1


def test_markdown_escapes_what_would_be_markup() -> None:
    lines = tables.markdown(AWKWARD).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3, 3]
    assert r"| a\|b " in lines[0]
    assert r"50% \& \\more\_" in lines[2]
    assert r"\[one\]\*" in lines[3]
    assert r"\<b\> \`x\`" in lines[3]


def test_latex_is_a_booktabs_table() -> None:
    lines = tables.render(RESULTS, "latex", "local").splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrrrrr}"
    assert lines[1] == r"  \toprule"
    assert lines[2] == r"  local & 512 & 1k & 2k & 4k & 8k & 16k & 32k \\"
    assert lines[3] == r"  \midrule"
    assert len(lines) == 4 + len(SIX) + 2
    assert lines[-2:] == [r"  \bottomrule", r"\end{tabular}"]


def test_latex_escapes_what_would_be_commands() -> None:
    lines = tables.latex(AWKWARD).splitlines()
    assert lines[2] == r"  a\textbar{}b & 1\_000 \% \\"
    assert lines[4] == (
        r"  50\% \& \textbackslash{}more\_ & \$5 \#1 \{x\} \textasciitilde{} \textasciicircum{} \\"
    )
    assert lines[5] == r"  {[}one]{*} & \textless{}b\textgreater{} `x` \\"


def test_latex_compiles(tmp_path: Path) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex on PATH")
    text = tables.latex(AWKWARD) + tables.render(RESULTS, "latex", intervals=True)
    (tmp_path / "table.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{text}\\end{{document}}\n", encoding="utf-8",
    )  # fmt: skip
    subprocess.run([program, "-halt-on-error", "table.tex"], cwd=tmp_path, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip


def test_csv_has_full_precision_and_reads_back() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.render(ruined(), "csv"))))
    assert list(rows[0]) == ["definition", "strategy", *map(str, LENGTHS)]
    assert len(rows) == 3 * len(SIX)
    for row in rows:
        known = ruined().of(row["definition"])[row["strategy"]]
        for length in LENGTHS:
            assert repr(float(row[str(length)])) == repr(known[length].perplexity)
    assert list(csv.reader(io.StringIO(tables.csv_text(AWKWARD)))) == AWKWARD


def test_all_definitions_follow_each_other_headlines_first() -> None:
    corners = re.findall(r"^\| (local|fixed|prefix) ", tables.render(RESULTS, "markdown"), re.M)
    assert corners == ["local", "fixed", "prefix"]
    assert tables.render(RESULTS, "latex").count(r"\toprule") == 3
    rows = list(csv.reader(io.StringIO(tables.render(RESULTS, "csv"))))
    assert list(dict.fromkeys(row[0] for row in rows[1:])) == ["local", "fixed", "prefix"]


def test_intervals_are_half_widths_in_the_digits_of_the_number() -> None:
    results = small((2.0, 0.1), (2.0, 0.0001), (5.0, 0.1), (2.0, None), (20.0, 0.1))
    cells = tables.rows(results, "local", intervals=True)[1]
    assert cells == ["yarn:4", "7.39 ± 1.45", "7.39 ± 0.001", "148 ± 29", "7.39", "5e8"]
    assert r"7.39 $\pm$ 1.45" in tables.render(results, "latex", intervals=True)
    row = next(csv.DictReader(io.StringIO(tables.render(results, "csv", intervals=True))))
    assert float(row["1 +-"]) == pytest.approx(1.448, abs=1e-3)
    assert row["4 +-"] == ""


def test_half_width_follows_the_interval_where_there_is_one() -> None:
    results = small((2.0, 0.1))
    known = replace(results.results[0], low=6.0, high=9.0)
    cells = tables.rows(replace(results, results=(known,)), "local", intervals=True)[1]
    assert cells == ["yarn:4", "7.39 ± 1.50"]


def test_lengths_that_were_not_measured_stay_empty() -> None:
    fewer = replace(RESULTS, results=RESULTS.results[1:])
    assert tables.rows(fewer, "prefix")[1][1] == ""
    rows = list(csv.DictReader(io.StringIO(tables.render(fewer, "csv", "prefix"))))
    assert rows[0]["512"] == ""


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown format 'html'; choose one of markdown, latex"):
        tables.render(RESULTS, "html")
    with pytest.raises(ValueError, match="no perplexity called 'sliding'; it has local, fixed"):
        tables.render(RESULTS, "latex", "sliding")


def test_run_without_numbers_has_no_tables() -> None:
    assert tables.render(EMPTY, "markdown") == ""
    assert tables.render(EMPTY, "csv") == "definition,strategy\n"
    assert tables.definitions(EMPTY) == ()
