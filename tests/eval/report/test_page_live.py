"""`report.html` in a real browser: charts, toggles, reading, hostile names, narrow screens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.report import page, tables
from ropex_eval.scores.results import Results
from tests.support.browser import Browser, find_browser
from tests.support.made_up import (
    EMPTY,
    EXPLANATIONS,
    HOSTILE,
    LENGTHS,
    SIX,
    TWELVE,
    hostile,
    made_up,
    paired,
    ruined,
)

PROGRAM = find_browser()
if PROGRAM is None:
    pytest.skip("no chromium and no google-chrome on PATH", allow_module_level=True)

RESULTS = made_up()
CHART = "[data-chart=perplexity]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    opened = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Any:
    def load(results: Results = RESULTS, **options: Any) -> Browser:
        page.write(results, EXPLANATIONS, tmp_path / "report.html")
        browser.open(tmp_path / "report.html", **options)
        return browser

    return load


def count(browser: Browser, selector: str) -> int:
    return int(browser.run(f"document.querySelectorAll({selector!r}).length"))


def choose(browser: Browser, title: str, name: str, inside: str = CHART) -> None:
    """Click a toggle, as a person finds it: by its title and the words on it."""
    browser.run(f"""
        [...document.querySelectorAll("{inside} fieldset")]
            .find(group => group.querySelector("legend").textContent === "{title}")
            .querySelector("input[value='{name}']").click()""")


def texts(browser: Browser, selector: str) -> list[str]:
    return list(
        browser.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")
    )


def reading(browser: Browser, kind: str = "perplexity") -> list[str]:
    """What the chart tells at the cursor: a line for each strategy."""
    return texts(browser, f"[data-chart={kind}] .reading p, [data-chart={kind}] .reading tr")


@pytest.mark.parametrize(
    "results",
    [
        RESULTS, ruined(), made_up(("none",), (4096,), ("fixed",), retrieval=False),
        made_up(intervals=False), made_up(TWELVE, range(2048, 40 * 2048 + 1, 2048)), EMPTY,
    ],
    ids=["six", "ruined", "one", "no intervals", "many", "empty"],
)  # fmt: skip
def test_nothing_fails_and_nothing_is_asked_of_the_network(show: Any, results: Results) -> None:
    browser = show(results)
    browser.resize(400)
    browser.settle()
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("file:")] == []
    assert len(browser.requests) == 1
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert "NaN" not in browser.run(
        "[...document.querySelectorAll('svg')].map(e => e.innerHTML).join()"
    )


def test_charts_have_a_line_and_a_band_for_each_strategy(show: Any) -> None:
    browser = show()
    for kind in ("perplexity", "curve"):
        assert count(browser, f"[data-chart={kind}] .line polyline") == 6
        assert count(browser, f"[data-chart={kind}] .band") == 6
    assert count(browser, f"{CHART} .line circle:not(.ring)") == 6 * len(LENGTHS)
    shown = [each for each in RESULTS.verdicts if each.safe]
    assert 0 < len(shown) < 6
    assert count(browser, f"{CHART} .ring") == len(shown)
    assert count(browser, "[data-chart=wavelengths] .line polyline") == 6
    assert count(browser, "[data-chart=wavelengths] .clipped") == 8
    assert texts(browser, ".mark text") == ["trained: 4k"] * 3


def test_points_stand_where_their_values_are(show: Any) -> None:
    browser = show()
    found = browser.run(f"""[...document.querySelectorAll("{CHART} .line")].map(line =>
        [...line.querySelectorAll("circle:not(.ring)")].map(
            dot => [+dot.getAttribute("cx"), +dot.getAttribute("cy")]))""")
    values = [row for row in RESULTS.of("local").values()]
    logs = [(math.log(row[n].perplexity), y) for row, points in zip(values, found, strict=True)
            for n, (_, y) in zip(LENGTHS, points, strict=True)]  # fmt: skip
    (first, top), (last, bottom) = min(logs), max(logs)
    for value, y in logs:
        assert y == pytest.approx(top + (value - first) / (last - first) * (bottom - top), abs=0.01)
    steps = [after[0] - before[0] for before, after in zip(found[0], found[0][1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_what_cannot_be_drawn_stands_at_the_upper_edge(show: Any) -> None:
    browser = show(ruined())
    assert count(browser, f"{CHART} .clipped:not(.lost)") == 3
    assert count(browser, f"{CHART} .lost") == 2
    choose(browser, "perplexity", "close-up")
    assert count(browser, f"{CHART} .clipped:not(.lost)") > 3
    assert browser.complaints == []


def test_definition_changes_chart_and_table_together(show: Any) -> None:
    browser = show()
    visible = "[...document.querySelectorAll('[data-definition]')].filter(e => e.offsetParent)"
    assert browser.run(f"{visible}.map(e => e.dataset.definition)") == ["local"]
    before = browser.run(f"document.querySelector('{CHART} polyline').getAttribute('points')")
    choose(browser, "definition", "fixed")
    assert browser.run(f"{visible}.map(e => e.dataset.definition)") == ["fixed"]
    after = browser.run(f"document.querySelector('{CHART} polyline').getAttribute('points')")
    assert before != after


def test_axes_can_be_linear(show: Any) -> None:
    browser = show()
    places = f"[...document.querySelectorAll('{CHART} .line circle:not(.ring)')]"
    choose(browser, "length", "linear")
    choose(browser, "perplexity", "linear")
    across = [float(x) for x in browser.run(f"{places}.map(e => e.getAttribute('cx'))")[:7]]
    unit = (across[6] - across[0]) / (LENGTHS[6] - LENGTHS[0])
    assert across == pytest.approx([across[0] + unit * (n - LENGTHS[0]) for n in LENGTHS], abs=0.01)


def test_legend_switches_a_strategy_off_in_all_charts(show: Any) -> None:
    browser = show()
    key = f'document.querySelector("{CHART} .legend button:nth-child(2)")'
    browser.run(f"{key}.click()")
    assert browser.run(f"{key}.getAttribute('aria-pressed')") == "false"
    for kind in ("perplexity", "curve", "wavelengths"):
        assert count(browser, f"[data-chart={kind}] .line") == 5
        assert count(browser, f"[data-chart={kind}] .legend [aria-pressed=false]") == 1
    for place in (1, 3, 4, 5, 6):
        browser.run(f'document.querySelector("{CHART} .legend button:nth-child({place})").click()')
    assert count(browser, ".line") == 0
    browser.run(f"{key}.click()")
    assert count(browser, f"{CHART} .line") == 1
    assert browser.complaints == []


def test_pointing_reads_exact_values_best_first(show: Any) -> None:
    browser = show()
    box = browser.run(f"""(() => {{
        const chart = document.querySelector("{CHART} svg");
        chart.scrollIntoView({{block: "center"}});
        const box = chart.querySelector(".ring").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    }})()""")
    browser.point(*box)
    browser.settle()
    title, *lines = reading(browser)
    assert title == "4096 tokens"
    assert all(line.startswith(text) for line, text in zip(lines, SIX, strict=True))
    result = RESULTS.of("local")["none"][4096]
    assert result.low is not None
    assert f"{result.perplexity:.5g}" in lines[0]
    assert f"{result.low:.5g} to {result.high:.5g}" in lines[0]
    browser.point(1, 1)
    browser.settle()
    assert count(browser, f"{CHART} .reading[hidden]") == 1


def test_keys_read_values(show: Any) -> None:
    browser = show()
    browser.run(f"document.querySelector('{CHART} svg').focus()")
    browser.press("Home")
    assert reading(browser)[0] == "512 tokens"
    browser.press("ArrowRight")
    assert reading(browser)[0] == "1024 tokens"
    browser.press("End")
    browser.press("ArrowRight")
    assert reading(browser)[0] == "32768 tokens"
    browser.press("Escape")
    assert count(browser, f"{CHART} .reading[hidden]") == 1
    browser.run("document.querySelector('[data-chart=curve] svg').focus()")
    browser.press("Home")
    first = RESULTS.curve[0]
    assert reading(browser, "curve")[0] == f"positions {first.start} to {first.end - 1}"
    assert f"{first.nll:.5g}" in reading(browser, "curve")[1]


def test_buttons_copy_the_table_that_is_shown(show: Any) -> None:
    browser = show()
    browser.run("""Object.defineProperty(navigator, "clipboard", {value: {
        writeText: async text => { window.copied = text; }}})""")
    choose(browser, "definition", "fixed")
    for form in ("markdown", "latex"):
        browser.run(f"document.querySelector('[data-definition=fixed] [data-copy={form}]').click()")
        assert browser.run("window.copied") == tables.render(RESULTS, form, "fixed")
        assert "Copied" in texts(browser, f"[data-definition=fixed] [data-copy={form}]")


def test_heatmaps_show_accuracy_or_log_probability(show: Any) -> None:
    browser = show()
    assert count(browser, ".maps > div") == 6
    cell = ".heat td:nth-child(4)"
    before = texts(browser, cell)[0]
    shade = f"getComputedStyle(document.querySelector('{cell}')).backgroundColor"
    colour = browser.run(shade)
    choose(browser, "cells show", "logprob", "#retrieval")
    assert before == texts(browser, cell)[0] == "40−1.52"  # noqa: RUF001
    assert browser.run(f"document.querySelector('{cell}').innerText") == "−1.52"  # noqa: RUF001
    assert browser.run(shade) != colour


def test_hostile_names_are_inert(show: Any) -> None:
    browser = show(hostile(*HOSTILE))
    for selector in (".name", "[data-chart] button", "svg"):
        browser.run(f"""document.querySelectorAll({selector!r}).forEach(e => {{
            e.dispatchEvent(new MouseEvent("mouseover", {{bubbles: true}})); e.focus?.(); }})""")
    browser.press("End")
    assert browser.run("window.hacked ?? null") is None
    assert count(browser, "img") == 0
    assert len(browser.requests) == 1
    assert browser.complaints == []
    assert texts(browser, f"{CHART} .legend code") == list(HOSTILE)


def test_without_scripts_all_tables_are_there_and_no_dead_button(show: Any) -> None:
    browser = show()
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.reload")
        browser.wait("document.readyState === 'complete'")
        visible = "[...document.querySelectorAll('table')].filter(e => e.offsetParent).length"
        assert browser.run(visible) >= 3 + 2 + 6 + 1 + 1
        assert browser.run("[...document.querySelectorAll('button')].every(e => !e.offsetParent)")
        assert "Charts need JavaScript" in browser.run("document.body.innerText")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_dark_and_printed(show: Any) -> None:
    browser = show(dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert browser.run(paper) == "rgb(20, 23, 28)"
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run(paper) == "rgb(255, 255, 255)"
    parts = "[...document.querySelectorAll('[data-definition]')].filter(e => e.offsetParent)"
    assert browser.run(f"{parts}.length") == 3
    browser.resize(718)  # A4 with the margins of a browser
    assert browser.run("document.documentElement.scrollWidth") <= 718
    browser.call("Emulation.setEmulatedMedia", media="")


def test_comparison_draws_both_runs(browser: Browser, tmp_path: Path) -> None:
    right = made_up(SIX[:4])
    path = tmp_path / "compare.html"
    path.write_text(page.compare(RESULTS, right, paired(RESULTS, right)), encoding="utf-8")
    browser.open(path, width=400)
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert count(browser, f"{CHART} .line") == 10
    dashes = browser.run(f"""[...document.querySelectorAll("{CHART} polyline")].map(
        line => getComputedStyle(line).strokeDasharray)""")
    assert not set(dashes[:6]) & set(dashes[6:])
    choose(browser, "definition", "fixed")
    assert browser.complaints == []
