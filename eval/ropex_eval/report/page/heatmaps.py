"""Retrieval: how often answers are found, by depth and length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from ropex.sizes import format_size
from ropex_eval.report.page import words
from ropex_eval.report.page.markup import Cell, Markup, Row, join, table, tag
from ropex_eval.report.page.sections import Styles, fold, how, section
from ropex_eval.report.page.words import name, number
from ropex_eval.scores.results import Results, Retrieval

ACCURACY = (
    "Accuracy: percent of answers that greedy decoding would give, every token of them; 95 % "
    "intervals (Wilson) and ranks are under Numbers. Log-probability: mean over the tokens of the "
    "answers, in nats; nearer to 0 is better. Depth: where in the text the answer stands, 0 % at "
    "the beginning."
)


def retrieval(results: Results, explained: Mapping[str, str], chosen: Styles) -> Markup:
    """Heatmaps: depth down and length across for each strategy, or strategies down."""
    if not results.retrieval:
        return Markup()
    choices = [
        tag(
            "label", tag("input", type="radio", name="heat", value=value, checked=place == 0), label
        )
        for place, (value, label) in enumerate(
            [("accuracy", "accuracy"), ("logprob", "log-probability")]
        )
    ]
    toggle = tag("fieldset", tag("legend", "cells show"), *choices, class_="choice")
    parts = [
        _task(each, [row for row in results.retrieval if row.task == each], explained, chosen)
        for each in dict.fromkeys(row.task for row in results.retrieval)
    ]
    return section("Retrieval", how(ACCURACY), toggle, *parts, place="retrieval")


def _task(
    task: str, rows: Sequence[Retrieval], explained: Mapping[str, str], chosen: Styles
) -> Markup:
    texts = list(dict.fromkeys(row.strategy for row in rows))
    placed = [row for row in rows if row.depth is not None]
    anywhere = [row for row in rows if row.depth is None]
    maps = [_heatmap([row for row in placed if row.strategy == text], chosen) for text in texts]
    said = how(explained[task]) if task in explained else Markup()
    grid = tag("div", *maps, class_="maps") if placed else Markup()
    lines = _unplaced(anywhere, chosen) if anywhere else Markup()
    return Markup(tag("h3", task) + said + grid + lines + fold("Numbers", _trials(task, rows)))


def _heatmap(rows: Sequence[Retrieval], chosen: Styles) -> Markup:
    if not rows:
        return Markup()
    text = rows[0].strategy
    columns = sorted({row.length for row in rows})
    known = {(row.depth, row.length): row for row in rows}
    body: list[Row] = [
        [f"{100 * depth:.0f} %", *(_heat(known.get((depth, length))) for length in columns)]
        for depth in sorted({row.depth for row in rows if row.depth is not None})
    ]
    inner = table(f"{text}: depth by length", ["depth", *map(format_size, columns)], body, "heat")
    return tag("div", tag("p", name(text, chosen[text])), inner)


def _unplaced(rows: Sequence[Retrieval], chosen: Styles) -> Markup:
    columns = sorted({row.length for row in rows})
    known = {(row.strategy, row.length): row for row in rows}
    body: list[Row] = [
        [name(text, chosen[text]), *(_heat(known.get((text, length))) for length in columns)]
        for text in dict.fromkeys(row.strategy for row in rows)
    ]
    return table("By length", ["strategy", *map(format_size, columns)], body, "heat wide")


def _heat(row: Retrieval | None) -> Cell:
    if row is None:
        return Cell("")
    likely = math.exp(min(row.logprob, 0.0)) if not math.isnan(row.logprob) else 0.0
    note = (
        f"{_share(row.accuracy)} ({_share(row.low)} to {_share(row.high)}) of "
        f"{words.plural(row.trials, 'answers')}; log-probability {words.signed(row.logprob)}, "
        f"median rank {number(row.rank)}"
    )
    both = (
        tag("span", f"{100 * row.accuracy:.0f}", class_="accuracy"),
        tag("span", f"{row.logprob:.2f}".replace("-", words.MINUS), class_="logprob"),
    )
    return Cell(
        join(both), note=note, style=f"--accuracy:{row.accuracy:.3f};--logprob:{likely:.3f}"
    )


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _trials(task: str, rows: Iterable[Retrieval]) -> Markup:
    header = ["strategy", "length", "depth", "accuracy", "95 % interval", "log-probability",
              "median rank", "answers"]  # fmt: skip
    body = [
        [
            tag("code", row.strategy),
            format_size(row.length),
            "" if row.depth is None else _share(row.depth),
            _share(row.accuracy),
            f"{_share(row.low)} to {_share(row.high)}",
            words.signed(row.logprob),
            number(row.rank),
            str(row.trials),
        ]
        for row in rows
    ]
    return table(f"{task}: all numbers", header, body)
