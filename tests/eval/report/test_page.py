"""`report.html`: what stands in it, without a browser; `test_page_live.py` has one."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ropex.sizes import format_size
from ropex_eval.report import page
from ropex_eval.report.page import words
from ropex_eval.report.page.data import embed
from ropex_eval.report.page.origin import origins
from ropex_eval.scores.results import Results
from tests.support.made_up import (
    EMPTY,
    EXPLANATIONS,
    HOSTILE,
    LENGTHS,
    SIX,
    TRAINED,
    TWELVE,
    hostile,
    made_up,
    paired,
    ruined,
)

VOID = {"br", "input", "meta"}
CASES = {
    "six": made_up(), "many": made_up(TWELVE, range(2048, 40 * 2048 + 1, 2048)),
    "one": made_up(("yarn:8",), (TRAINED,), ("fixed",), retrieval=False),
    "no intervals": made_up(intervals=False), "ruined": ruined(), "empty": EMPTY,
    "nothing known": replace(made_up(), about={}, strategies={text: {} for text in SIX}),
}  # fmt: skip


class Reader(HTMLParser):
    """Checks that elements nest, and collects what a reader would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.shape: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.cells: list[str] = []
        self.script = ""
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape[tag, tuple(sorted(name for name, _ in attrs))] += 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.script = data
        elif inside != "style":
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.cells[-1] += data + "\n"


def render(results: Results) -> str:
    return page.render(results, EXPLANATIONS)


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("name", CASES)
def test_page_is_html_that_asks_for_nothing(name: str) -> None:
    text = render(CASES[name])
    read = Reader(text)
    assert text.startswith("<!doctype html>")
    assert all(link.startswith(("#", "data:text/csv;")) for link in read.links), read.links
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_only_the_script_of_the_package_may_run() -> None:
    text = render(CASES["six"])
    digest = base64.b64encode(hashlib.sha256(Reader(text).script.encode()).digest()).decode()
    assert (
        f"script-src &#x27;sha256-{digest}&#x27;;" in text
        or f"script-src 'sha256-{digest}';" in text
    )
    assert "script-src 'unsafe" not in text
    sources = [path.read_text(encoding="utf-8") for path in files(page).iterdir()
               if path.name.endswith(".js")]  # fmt: skip
    for source in sources:
        assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp", source)


def test_hostile_names_change_words_and_nothing_else() -> None:
    as_long = [letter * len(name) for letter, name in zip("ab", HOSTILE, strict=True)]
    tame, wild = (Reader(render(hostile(*names))) for names in (as_long, HOSTILE))
    assert tame.shape == wild.shape
    for name in HOSTILE:
        assert name in wild.text
    assert "<" not in embed({"name": "".join(HOSTILE)})


def test_every_perplexity_and_its_interval_are_in_a_table() -> None:
    results = CASES["six"]
    cells = set(Reader(render(results)).cells)
    for row in results.results:
        assert row.low is not None
        assert row.high is not None
        low, high = words.perplexity(row.low), words.perplexity(row.high)
        assert f"{words.perplexity(row.perplexity)}\n{low} to {high}\n" in cells


def test_every_other_number_is_in_a_table() -> None:
    results = CASES["six"]
    cells = Reader(render(results)).cells
    for change in results.changes:
        interval = words.percents(change.low, change.high)
        assert change.hurt is not None
        told = f"{words.percent(change.nll)}\n{interval}\nhurt {change.hurt:.0%}\n"
        assert told in cells
    for verdict in results.verdicts:
        safe = format_size(verdict.safe) if verdict.safe else "not shown"
        assert any(cell.startswith(safe) for cell in cells)
        for step in verdict.steps:
            assert step.low is not None
            assert step.high is not None
            told = (
                f"{words.signed(step.nll)}\n{words.signed(step.low)} to {words.signed(step.high)}"
            )
            assert any(cell.startswith(told) for cell in cells)
    for point in results.curve:
        assert point.se is not None
        assert f"{words.number(point.nll)} ± {words.number(point.se)}\n" in cells
    for row in results.retrieval:
        assert f"{words.signed(row.logprob)}\n" in cells
        assert f"{100 * row.low:.0f} % to {100 * row.high:.0f} %\n" in cells
    for known in results.strategies.values():
        for value in known["wavelengths"]:
            assert f"{'∞' if value is None else words.number(value)}\n" in cells


def test_everything_known_of_the_run_is_told_and_how_numbers_are_computed() -> None:
    results = CASES["six"]
    text = Reader(render(results)).text
    for part in origins(results).values():
        for value in part.values():
            told = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            assert told in text or value in (None, False)
    assert results.about["command"] in text
    assert results.about["warnings"][0] in text
    for explanation in EXPLANATIONS.values():
        assert explanation in text


def test_verdict_comes_first_in_words() -> None:
    text = Reader(render(CASES["six"])).text
    assert text.index("safe up to") < text.index("safe context") < text.index("Perplexity against")
    assert (
        "dynamic has the lowest fixed perplexity: 5.82 (none: 7820). It is shown to be safe up to"
        in text
    )
    assert "Still open: 1 of 6 verdicts; about 40 documents would decide." in text
    assert "about 40 documents would decide (12 read)" in text


def test_headline_definitions_come_first() -> None:
    assert list(data_of(render(CASES["six"]))["perplexity"]) == ["local", "fixed", "prefix"]


def test_download_holds_every_perplexity_at_full_precision() -> None:
    results = CASES["ruined"]
    link = next(link for link in Reader(render(results)).links if link.startswith("data:"))
    text = base64.b64decode(link.partition("base64,")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [repr(float(row["perplexity"])) for row in rows] == [
        repr(row.perplexity) for row in results.results
    ]
    assert {row["low"] for row in rows} >= {"", str(results.results[0].low)}


def test_charts_have_every_point_and_only_json_that_browsers_read() -> None:
    results = CASES["ruined"]
    data = data_of(render(results))
    assert data["trained"] == [TRAINED]
    lines = data["perplexity"]["fixed"]
    assert [line["name"] for line in lines] == list(SIX)
    assert [[point[0] for point in line["points"]] for line in lines] == [list(LENGTHS)] * 6
    said = {point[1] for line in lines for point in line["points"] if isinstance(point[1], str)}
    assert said == {"Infinity", "NaN"}


def test_bands_of_the_curve_are_those_of_as_many_documents_as_were_read() -> None:
    results = CASES["six"]
    assert results.curve[0].se is not None
    _, nll, low, high, _ = data_of(render(results))["curve"][0]["points"][0]
    half = 2.2010 * results.curve[0].se  # 12 documents
    assert (low, high) == pytest.approx((nll - half, nll + half), abs=1e-4)


def test_lines_are_told_apart() -> None:
    chosen = words.styles(TWELVE)
    assert len(set(chosen.values())) == 12
    both = [*chosen.values(), *words.styles(TWELVE, run=1).values()]
    assert len(set(both)) == 24


@pytest.mark.parametrize(
    ("nats", "shown"),
    [
        (0.0, "0 %"),
        (1e-6, "0 %"),
        (0.0021, "+0.21 %"),
        (-0.05, f"{words.MINUS}4.9 %"),
        (0.2, "+22 %"),
        (3.0, f"{words.TIMES}20.1"),
        (math.inf, f"{words.TIMES}∞"),
        (900.0, f"{words.TIMES}∞"),
        (-math.inf, f"{words.MINUS}100 %"),
        (math.nan, "not a number"),
    ],
)
def test_differences_in_percent(nats: float, shown: str) -> None:
    assert words.percent(nats) == shown


def test_write_replaces_a_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    page.write(CASES["six"], EXPLANATIONS, path)
    assert path.read_text(encoding="utf-8") == render(CASES["six"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["six", "ruined", "no intervals"])
def test_results_that_were_stored_give_the_same_page(name: str, tmp_path: Path) -> None:
    CASES[name].save(tmp_path)
    assert render(Results.load(tmp_path)) == render(CASES[name])


def test_names_that_are_no_text_are_written_all_the_same(tmp_path: Path) -> None:
    results = replace(EMPTY, about={"model": {"id": "x"}, "data": {"documents": ["bad\udcff.txt"]}})
    page.write(results, {}, tmp_path / "report.html")
    assert "bad?.txt" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_comparison_has_both_verdicts_and_every_difference() -> None:
    left, right = CASES["six"], made_up(SIX[:4])
    differences = paired(left, right)
    text = page.compare(left, right, differences)
    read = Reader(text)
    for run in (left, right):
        assert all(format_size(v.safe) in read.text for v in run.verdicts if v.safe)
    for each in differences:
        cell = f"{words.percent(each.nll)}\n{words.percents(each.low, each.high)}\n"
        assert cell in read.cells
    names = [line["name"] for line in data_of(text)["perplexity"]["local"]]
    assert names == [*(f"A {name}" for name in SIX), *(f"B {name}" for name in SIX[:4])]


def test_comparison_marks_what_differs_and_copes_with_little() -> None:
    other = replace(CASES["six"], about={**CASES["six"].about, "versions": {"ropex": "9"}})
    text = page.compare(CASES["six"], other, ())
    assert text.count('class="differs"') == 2 * 3  # ropex, transformers, torch
    Reader(page.compare(EMPTY, replace(EMPTY, about={}), ()))


def _contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        bent = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * bent[0] + 0.7152 * bent[1] + 0.0722 * bent[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark_and_in_print() -> None:
    style = (files(page) / "page.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in re.findall(
        r":root \{(.*?)\}", style, re.DOTALL)]  # fmt: skip
    assert len(themes) == 3
    for theme in themes:
        for name in ("ink", "soft", "link"):
            assert _contrast(theme[name], theme["paper"]) >= 4.5
        for ground in ("better", "worse", "open", "heat"):
            assert _contrast(theme["ink"], theme[ground]) >= 4.5
            assert ground == "heat" or _contrast(theme["soft"], theme[ground]) >= 4.5
        for name in theme:
            if name.startswith("c"):
                assert _contrast(theme[name], theme["paper"]) >= 3
