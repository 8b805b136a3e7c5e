"""What one run changes against another, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from ropex.sizes import format_size
from ropex_eval.report.page import Difference
from ropex_eval.report.tables import markdown
from ropex_eval.report.terminal import align, percent
from ropex_eval.running.archive import Archive, difference


def differences(left: Archive, right: Archive) -> list[Difference]:
    """Right minus left, for each strategy that both runs have, each definition and each length.

    Args:
        left: As `ropex_eval.running.archive.common` returns it.
        right: Likewise.
    """
    found = []
    for strategy in (text for text in left.tables if text in right.tables):
        for name in left.protocol.definitions:
            for length in left.protocol.lengths:
                change = difference(left, right, strategy, name, length)
                ends = change.interval
                found.append(Difference(strategy, name, length, change.mean, change.se, *ends))
    return found


def tables(found: Sequence[Difference], *, as_markdown: bool = False) -> dict[str, str]:
    """Changes of perplexity in percent, by definition: strategies down, lengths across."""
    texts = {}
    for name in dict.fromkeys(each.definition for each in found):
        here = [each for each in found if each.definition == name]
        lengths = dict.fromkeys(each.length for each in here)
        rows = [["L =", *map(format_size, lengths)]]
        for strategy in dict.fromkeys(each.strategy for each in here):
            mine = (each for each in here if each.strategy == strategy)
            rows.append([strategy, *(percent(each.nll, each.low, each.high) for each in mine)])
        texts[name] = markdown(rows) if as_markdown else align(rows)
    return texts
