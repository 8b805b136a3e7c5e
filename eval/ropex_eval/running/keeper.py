"""Results of what is finished so far, made from the stored table and written to the folder."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ropex
from ropex.strategies.base import Strategy
from ropex_eval.running.claim import Claim
from ropex_eval.running.numbers import Numbers
from ropex_eval.running.retrieving import Retriever
from ropex_eval.running.work import Group
from ropex_eval.scores.results import Results, Retrieval
from ropex_eval.study.passes import passes
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table

TEXT = "excerpts.safetensors"
_WRITE_EVERY = 10  # seconds


class Keeper:
    """Makes results of what is finished so far, and writes them from time to time."""

    def __init__(
        self, study: Study, tables: dict[Strategy, Table], claim: Claim,
        retriever: Retriever | None, tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.study, self.tables, self.claim, self.tell = study, tables, claim, tell
        self.retriever, self.out = retriever, claim.out
        self._written = time.monotonic()

    def __call__(self, group: Group) -> None:
        """After each group of work: write, if that was not done for a while."""
        if time.monotonic() - self._written > _WRITE_EVERY and self._finished():
            self.keep(tell=False)
            self._written = time.monotonic()

    def _finished(self) -> int:
        """How many excerpts are read under every strategy."""
        study = self.study
        unread = [
            each.excerpt
            for strategy, table in self.tables.items()
            for each in table.missing(passes(study.corpus, study.protocol, strategy, study.rope))
        ]
        return min(unread, default=len(study.corpus.excerpts))

    def results(self, tell: bool = True) -> Results:
        """The numbers of all excerpts that are finished."""
        count, study = self._finished(), self.study
        corpus = study.corpus.first(count)
        tables = {
            str(strategy): replace(table, corpus=corpus)
            for strategy, table in {**self._others(count, tell), **self.tables}.items()
        }
        numbers = Numbers(tables, study.protocol, study.rope.trained_length)
        about = {**study.about(corpus), "warnings": self._warnings(numbers, count)}
        strategies = {text: _about(study, text, table) for text, table in tables.items()}
        retrieval = self._retrieval(tables)
        return Results(about, study.protocol, strategies, **numbers.summary(), retrieval=retrieval)

    def _warnings(self, numbers: Numbers, count: int) -> list[str]:
        found = [*self.study.warnings, *numbers.warnings()]
        if count < len(self.study.corpus.excerpts):
            found.insert(0, f"{count} of {len(self.study.corpus.excerpts)} excerpts are finished")
        return found

    def _retrieval(self, tables: dict[str, Table]) -> tuple[Retrieval, ...]:
        """What is found, and what other starts have found in other tasks."""
        asked = self.retriever.questions.tasks if self.retriever else ()
        kept = [
            row
            for row in Results.load(self.out).retrieval
            if row.task not in asked and row.strategy in tables
        ]
        if self.retriever:
            kept += [row for s, table in tables.items() for row in self.retriever.rows(s, table)]
        return tuple(kept)

    def _others(self, count: int, tell: bool) -> dict[Strategy, Table]:
        """Strategies of other starts that all is known of in these excerpts, in their order."""
        store, found = next(iter(self.tables.values())).store, {}
        for text in Results.load(self.out).strategies:
            strategy, study = ropex.strategy(text), self.study
            if strategy in self.tables:
                found[strategy] = self.tables[strategy]
                continue
            table = Table(study.corpus, study.keys(strategy), store)
            every = passes(study.corpus.first(count), study.protocol, strategy, study.rope)
            if not table.missing(every):
                found[strategy] = table
            elif tell:
                self.tell(f"{text} was measured on other texts or lengths; -s {text} adds it here")
        return found

    def keep(self, tell: bool = True) -> Results:
        """Write the numbers and the text that they are about.

        Raises:
            FileExistsError: The folder is no longer of this model.
        """
        with self.claim.writing():  # so that no strategy of another process is lost
            results = self.results(tell)
            count = results.about["data"]["excerpts"]
            self.study.corpus.first(count).save(self.out / TEXT)
            if self.retriever:
                self.retriever.save_prompts()
            results.save(self.out)
        return results


def _about(study: Study, text: str, table: Table) -> dict[str, Any]:
    """The numbers behind the name, at the longest length."""
    strategy = ropex.strategy(text)
    plan = strategy.plan(study.rope, study.protocol.lengths[-1])
    wavelengths = (2 * math.pi / plan.inv_freq).tolist()
    return {
        "length_class": strategy.class_on(study.rope),
        "attention_scale": float(plan.attention_scale),
        "inv_freq_sha256": hashlib.sha256(plan.inv_freq.float().numpy().tobytes()).hexdigest(),
        "wavelengths": [each if math.isfinite(each) else None for each in wavelengths],
        "keys": [list(each) for each in table.keys.ranges],
    }
