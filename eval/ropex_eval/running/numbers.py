"""From the stored table to the numbers of a run: perplexities, tax and gain, verdicts, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from ropex_eval.scores.contexts import MARGIN, verdict
from ropex_eval.scores.definitions import DEFINITIONS, HEADLINE, Definition
from ropex_eval.scores.definitions import whole as whole_text
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Change, Point, Result, Winner
from ropex_eval.scores.statistics import Totals, estimate
from ropex_eval.scores.verdict import Verdict
from ropex_eval.study.longppl import key_tokens
from ropex_eval.study.table import NotMeasured, Table

BASELINE = "none"
_POINTS_PER_DOUBLING = 4
_SHORTEST_POINT = 8  # tokens


class Numbers:
    """Every number of a study, worked out once.

    Args:
        tables: What is known of each strategy, by its text form.
        protocol: What was measured.
        trained: Tokens that the model was trained at.
    """

    def __init__(self, tables: Mapping[str, Table], protocol: Protocol, trained: int) -> None:
        self.tables, self.protocol, self.trained = tables, protocol, trained
        self._totals: dict[tuple[str, str, int], Totals] = {}

    def summary(self) -> dict[str, Any]:
        """Everything, as `Results` takes it."""
        results = tuple(
            self.result(strategy, name, length)
            for strategy in self.tables
            for name in self.protocol.definitions
            for length in self.protocol.lengths
        )
        return {
            "results": results, "changes": self.changes(), "verdicts": self.verdicts(),
            "winners": self.winners(),
            "curve": tuple(point for strategy in self.tables for point in self.curve(strategy)),
        }  # fmt: skip

    def totals(self, strategy: str, name: str, length: int) -> Totals:
        """What one definition sums at one length, by cluster.

        Raises:
            NotMeasured: The table does not hold all of it.
            ValueError: The definition has nothing to score in excerpts as short as these.
        """
        key = (strategy, name, length)
        if key not in self._totals:
            self._totals[key] = self._summed(self.tables[strategy], name, length)
        return self._totals[key]

    def _summed(self, table: Table, name: str, length: int) -> Totals:
        definition, corpus, settings = DEFINITIONS[name], table.corpus, self.protocol.settings
        spans = definition.spans(corpus.text, length, settings)
        if not spans:
            raise ValueError(
                f"{name} has nothing to score at {length} tokens in excerpts of "
                f"{self.protocol.excerpt}; give longer ones (--excerpt)"
            )
        parts = []
        for index, cluster in enumerate(corpus.clusters):
            if name == "longppl":
                rows = [self._key_rows(table, index, length)]
            else:
                rows = [table.nll(index, span) for span in spans]
            parts.append((cluster, *_weighed(definition, rows)))
        return Totals.of(parts)

    def _key_rows(self, table: Table, index: int, length: int) -> Tensor:
        settings = self.protocol.settings
        if settings.evaluator not in self.tables:
            raise ValueError(
                f"longppl: the evaluator {settings.evaluator} was not measured; known: "
                f"{', '.join(self.tables)}"
            )
        keys = key_tokens(self.tables[settings.evaluator], index, length, settings)
        return table.nll(index, whole_text(0, length, table.corpus.text.bos))[keys]

    def result(self, strategy: str, name: str, length: int) -> Result:
        """One number of a run, with its interval."""
        totals = self.totals(strategy, name, length)
        found, tokens = estimate(totals), round(totals.count)
        low, high = found.interval
        if DEFINITIONS[name].weigh == "excerpt":
            nll = math.log(found.mean) if found.mean > 0 else math.nan
            se = None if found.se is None else found.se / found.mean
            return Result(strategy, name, length, nll, found.mean, se, low, high, tokens)
        low, high = (None if end is None else exp(end) for end in (low, high))
        mean = found.mean
        return Result(strategy, name, length, mean, exp(mean), found.se, low, high, tokens)

    @property
    def against(self) -> int | None:
        """The length at which no scaling is compared with: the longest within the trained one."""
        within = [length for length in self.protocol.lengths if length <= self.trained]
        return within[-1] if within and BASELINE in self.tables else None

    def changes(self) -> tuple[Change, ...]:
        """Tax and gain of each strategy against no scaling, on the same tokens.

        Empty without `none`, or where no length is within the trained one.
        """
        if self.against is None:
            return ()
        asked = [
            (strategy, name, length, min(length, self.against))
            for strategy in self.tables
            for name in HEADLINE
            for length in self.protocol.lengths
            if name in self.protocol.definitions
        ]
        return tuple(
            self._change(*each)
            for each in asked
            if (each[0] != BASELINE if each[2] == each[3] else each[1] == "fixed")
        )

    def _change(self, strategy: str, name: str, length: int, against: int) -> Change:
        old = self.totals(BASELINE, name, against)
        totals = self.totals(strategy, name, length).minus(old)
        found, hurt = estimate(totals), totals.share_above(MARGIN)
        kind = "tax" if length == against else "gain"
        ends = found.interval
        return Change(strategy, kind, name, length, against, found.mean, found.se, *ends, hurt)

    def verdicts(self) -> tuple[Verdict, ...]:
        """Safe and useful context of each strategy.

        Empty without fixed targets, or where there is nothing to compare with (see `changes`).
        """
        against = self.against
        if "fixed" not in self.protocol.definitions or against is None:
            return ()
        plain = self.totals(BASELINE, "fixed", against)
        return tuple(verdict(text, self._fixed(text), plain, against) for text in self.tables)

    def _fixed(self, strategy: str) -> dict[int, Totals]:
        return {n: self.totals(strategy, "fixed", n) for n in self.protocol.lengths}

    def winners(self) -> tuple[Winner, ...]:
        """The best of several strategies by fixed targets at each length, and by how much.

        Only those whose losses are all numbers compete.
        """
        if "fixed" not in self.protocol.definitions:
            return ()
        return tuple(filter(None, map(self._winner, self.protocol.lengths)))

    def _winner(self, length: int) -> Winner | None:
        every = {text: self.totals(text, "fixed", length) for text in self.tables}
        finite = [text for text in every if every[text].finite]
        if len(finite) < 2:
            return None
        best, second = sorted(finite, key=lambda text: estimate(every[text]).mean)[:2]
        lead = estimate(every[best].minus(every[second]))
        return Winner(length, best, second, lead.mean, lead.se, *lead.interval)

    def curve(self, strategy: str) -> tuple[Point, ...]:
        """Negative log-likelihood by position, from the pass of the longest length, if stored."""
        table, length = self.tables[strategy], self.protocol.lengths[-1]
        whole = whole_text(0, length, table.corpus.text.bos)
        try:
            rows = [table.nll(i, whole).double() for i in range(len(table.corpus.excerpts))]
        except NotMeasured:
            return ()
        points = []
        for start, end in _stretches(length):
            sums = (float(row[start - 1 : end - 1].sum()) for row in rows)
            clusters = zip(table.corpus.clusters, sums, strict=True)
            found = estimate(Totals.of((name, total, end - start, 0) for name, total in clusters))
            points.append(Point(strategy, start, end, found.mean, found.se))
        return tuple(points)

    def warnings(self) -> list[str]:
        """What a reader of the numbers should know."""
        found = []
        asked = (self.protocol.definitions, self.protocol.lengths)
        for strategy in self.tables:
            means = (self.result(strategy, name, n).nll for name in asked[0] for n in asked[1])
            if not all(map(math.isfinite, means)):
                found.append(
                    f"{strategy}: some losses are not finite, so it gets no verdict; if logits "
                    "overflow, a number type with a wider range may help (--dtype bfloat16 or "
                    "float32), and longppl without key tokens needs another --evaluator"
                )
        if "fixed" in self.protocol.definitions and BASELINE in self.tables:
            found += self._against()
        clusters = {name for table in self.tables.values() for name in table.corpus.clusters}
        documents = {name for table in self.tables.values() for name in table.corpus.documents}
        if len(clusters) == 1:
            found.append("one excerpt gives no intervals and decides nothing; give more --excerpts")
        elif len(documents) == 1:
            found.append(
                "all excerpts come from one document, and intervals take them for independent: "
                "they say nothing about other texts"
            )
        return found

    def _against(self) -> list[str]:
        """What verdicts are drawn against, where it is not the trained length."""
        if self.against == self.trained:
            return []
        if self.against is None:
            return [
                f"no length is within the {self.trained} tokens that the model was trained at: "
                "there is nothing to compare with, and no verdict; add one to --lengths"
            ]
        return [
            f"the trained length, {self.trained}, is not among --lengths: verdicts are against no "
            f"scaling at {self.against}, which may be easier to match"
        ]


def exp(value: float) -> float:
    """`exp(value)`, or infinity where that overflows."""
    return math.inf if value >= 700 else math.exp(value)


def _weighed(definition: Definition, rows: list[Tensor]) -> tuple[float, float, int]:
    """Sum and weight of one excerpt, in float64, and the number of its tokens."""
    sums, counts = [float(row.double().sum()) for row in rows], [len(row) for row in rows]
    tokens = sum(counts)
    if definition.weigh == "token":
        return math.fsum(sums), tokens, tokens
    if definition.weigh == "window":
        means = (total / count for total, count in zip(sums, counts, strict=True))
        return math.fsum(means), len(rows), tokens
    return exp(math.fsum(sums) / tokens), 1, tokens


def _stretches(length: int) -> list[tuple[int, int]]:
    """Positions 1 to `length`, in stretches that grow with the position."""
    edges = [1]
    while edges[-1] < length:
        grown = math.ceil(edges[-1] * 2 ** (1 / _POINTS_PER_DOUBLING))
        edges.append(min(length, max(grown, edges[-1] + _SHORTEST_POINT)))
    return list(pairwise(edges))
