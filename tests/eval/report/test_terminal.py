"""What a person sees of a run in the terminal."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from ropex_eval.report.terminal import align, format_change, format_perplexity, render
from ropex_eval.scores.results import Change, Winner
from ropex_eval.scores.verdict import Step, Verdict
from tests.support.tiny_eval import results_of


def test_table_has_strategies_down_and_lengths_across() -> None:
    values = {
        "local": {"none": [9.876, 12345.6, math.inf], "yarn:4": [10.04, 11.0, 2.5e6]},
        "sliding": {"none": [1.0, 99.96, 123.4], "yarn:4": [1.5, 2.0, 3.0]},
    }
    assert render(results_of(values, [8, 1024, 1536])) == (
        "local: perplexity of the last 4 of the first L tokens\n"
        "L =        8     1k  1536\n"
        "none    9.88  12300   inf\n"
        "yarn:4  10.0   11.0   2e6\n"
        "\n"
        "sliding: perplexity of every token, read in windows of L tokens that move on by L / 4\n"
        "L =        8    1k  1536\n"
        "none    1.00   100   123\n"
        "yarn:4  1.50  2.00  3.00"
    )


def open_at(end: int) -> Step:
    return Step(32, end, 0.04, 0.01, 0.02, 0.06, 0.4, 0.0, "open")


def test_verdict_says_how_far_each_is_shown_to_hold_and_which_is_best() -> None:
    texts = ("none", "yarn:4", "ntk:4", "linear:4")
    results = results_of({"fixed": dict.fromkeys(texts, [9.0] * 3)}, [8, 32, 64])
    results.about["data"]["documents"] = [str(n) for n in range(30)]
    results = dataclasses.replace(
        results,
        changes=(
            Change("none", "gain", "fixed", 64, 32, 0.5, 0.1, 0.3, 0.7, 0.96),
            Change("yarn:4", "tax", "fixed", 8, 8, 9.0, 0.1, 8.0, 10.0),
            Change("yarn:4", "tax", "local", 32, 32, 9.0, 0.1, 8.0, 10.0, 0.5),
            Change("yarn:4", "tax", "fixed", 32, 32, 0.01, 0.001, 0.008, 0.012, 0.0),
            Change("yarn:4", "gain", "fixed", 64, 32, -0.1, 0.01, -0.12, -0.08, 0.125),
        ),
        verdicts=(
            Verdict("none", 32, True, None, True, None, ()),
            Verdict("yarn:4", 32, False, 32, False, 41, (open_at(64),)),
            Verdict("ntk:4", None, False, None, False, None, (open_at(32),)),
            Verdict("linear:4", None, False, None, False, None, (), finite=False),
        ),
        winners=(
            Winner(32, "none", "yarn:4", -0.01, 0.001, -0.012, -0.008),
            Winner(64, "yarn:4", "none", -0.6, 0.1, -0.8, -0.4),
        ),
    )
    lines = render(results).split("\n\n")[1].splitlines()
    cells = [re.split(" {2,}", line) for line in lines[1:6]]
    assert lines[0].endswith("(trained at 32 tokens); perplexity against none at 32")
    assert cells == [
        ["strategy", "tax at 32", "hurt", "at 64", "hurt", "safe", "useful"],
        ["none", "--", "--", "+64.9 % (+35 to +101)", "96%", "32", "--"],
        ["yarn:4", "+1.0 % (+0.8 to +1.2)", "0%", "-9.5 % (-11 to -7.7)", "12%", "32", "32"],
        ["ntk:4", *["--"] * 6],
        ["linear:4", *["--"] * 6],
    ]
    assert lines[6:] == [
        "hurt: share of documents that lose more than 0.05 nats a token",
        "no verdict, as losses are NaN or infinite: linear:4",
        "open: yarn:4 at 64 (about 41 documents would decide); ntk:4 at 32 (too close to call)",
        "best at 64: yarn:4, by 0.600 ± 0.200 nats a token before none (the same tokens)",
    ]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        (2, "open: a at 64 (too few documents to say how many would decide)"),
        (28, "open: a at 64 (too close to call)"),
    ],
)
def test_few_documents_grant_nothing_and_that_is_told(documents: int, told: str) -> None:
    results = results_of({"fixed": {"a": [9.0]}}, [64])
    results.about["data"]["documents"] = [str(n) for n in range(documents)]
    verdict = Verdict("a", None, False, None, False, None, (open_at(64),))
    lines = render(dataclasses.replace(results, verdicts=(verdict,))).splitlines()
    assert lines[-2:] == [
        "with fewer than 29 documents only numbers equal to those of none are safe; "
        f"{documents} were read",
        told,
    ]


@pytest.mark.parametrize(
    ("winner", "line"),
    [
        (
            Winner(64, "a", "b", -0.01, 0.02, -0.05, 0.03),
            "best at 64: a, by 0.010 ± 0.040 nats a token before b (the same tokens), which may "
            "be chance",
        ),
        (Winner(64, "a", "b", -0.01, None, None, None), "best at 64: a, before b"),
        (
            Winner(64, "a", "b", -0.0004, 0.0001, -0.0006, -0.0002),
            "best at 64: a and b, which are equal there",
        ),
        (Winner(32, "a", "b", -0.01, None, None, None), ""),  # not at the longest length
    ],
)
def test_lead_that_may_be_chance_is_told_as_such(winner: Winner, line: str) -> None:
    results = results_of({"fixed": {"a": [9.0], "b": [9.0]}}, [64])
    verdict = Verdict("a", 64, True, None, True, None, ())
    results = dataclasses.replace(results, verdicts=(verdict,), winners=(winner,))
    told = f"hurt: share of documents that lose more than 0.05 nats a token\n{line}".rstrip()
    assert render(results).endswith(told)


@pytest.mark.parametrize(
    ("nll", "low", "high", "shown"),
    [
        (0.0, -0.01, 0.01, "+0.0 % (-1.0 to +1.0)"),
        (math.log(2), math.log(1.5), math.log(2.5), "+100.0 % (+50 to +150)"),
        (-0.1, None, None, "-9.5 %"),
        (10.0, 9.0, 11.0, ">1e6 %"),
        (math.inf, math.nan, math.nan, ">1e6 %"),
        (math.nan, math.nan, math.nan, "nan"),
        (1.0, -1e9, 1e9, "+171.8 % (-100 to >1e6)"),
    ],
)
def test_change_is_told_in_percent(
    nll: float, low: float | None, high: float | None, shown: str
) -> None:
    told = format_change(Change("a", "tax", "fixed", 8, 8, nll, 0.1, low, high))
    assert told == shown
    assert format_change(None) == "--"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1.00"), (0.9996, "1.00"), (5.678, "5.68"), (9.994, "9.99"), (9.996, "10.0"),
        (12.34, "12.3"), (99.94, "99.9"), (99.96, "100"), (123.4, "123"), (999.6, "1000"),
        (12_345.6, "12300"), (994_999.0, "995000"), (999_999.0, "1e6"), (1e6, "1e6"),
        (2.6e9, "3e9"), (1e100, "1e100"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_perplexity_is_shown_in_three_digits(value: float, shown: str) -> None:
    assert format_perplexity(value) == shown


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert align([["a", "b"], ["long", "1"], ["x", "100"]]) == "a       b\nlong    1\nx     100"
    assert align([["a", "b"], ["long", "1"]], numbers=False) == "a     b\nlong  1"
