"""A run: a folder that holds everything that was measured, and that a second start continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ropex.strategies.base import Strategy
from ropex_eval.measure.context_parallel import SharedScorer
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.reader import Reader
from ropex_eval.running.claim import LOCKS, Claim, check_out, is_fresh
from ropex_eval.running.keeper import Keeper
from ropex_eval.running.processes import ALONE, Processes
from ropex_eval.running.progress import progress
from ropex_eval.running.retrieving import Retriever
from ropex_eval.running.work import Group, Worker, groups
from ropex_eval.scores.results import Results
from ropex_eval.study.store import Store
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table


@dataclass(frozen=True)
class Effort:
    """How much a run may take, and who shares the work.

    Attributes:
        budget: Seconds after which no more excerpts are begun; each strategy reads the same ones.
        max_memory: Bytes that the weights and a pass may take together.
        processes: Those that share the work.
    """

    budget: float | None = None
    max_memory: int | None = None
    processes: Processes = ALONE


def run(
    study: Study,
    strategies: Sequence[Strategy],
    out: Path,
    *,
    retriever: Retriever | None = None,
    effort: Effort = Effort(),  # frozen
    force: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    begin: Callable[[], None] = lambda: None,
) -> Results:
    """Measure strategies, keeping what is there already; every number comes from what is stored.

    Args:
        study: What to measure on.
        strategies: What to measure. Strategies of an earlier start stay in the results if all that
            is asked for now was measured for them.
        out: Folder of the run.
        retriever: Asks the retrieval tasks, if there are any.
        effort: How much it may take.
        force: Replace the results of a different model in `out`; its table is not used.
        tell: Called with each sentence that the user should read.
        begin: Called once nothing stands in the way, before anything is measured.

    Raises:
        FileExistsError: `out` holds a run of a different model.
        MemoryError: A pass was too large; what is finished is kept.
        ValueError: A strategy does not fit the model, or a length is too short for a task.
    """
    check_out(out, force)
    _check_evaluator(study, strategies)
    is_fresh(study, out, force)  # what is refused touches no file
    store = Store(out / "nll", tell)
    tables = {s: Table(study.corpus, study.keys(s), store) for s in dict.fromkeys(strategies)}
    if retriever:
        retriever.discard_damaged(list(tables.values()), tell)
    todo, reader = groups(study, tables), _reader(study, effort, tell)
    effort.processes.wait()  # until all have seen what was there
    if effort.processes.agree(_lacks(tables, todo, retriever)):
        # Errors of loading, and of memory, come before a file is touched.
        reader().require(study.protocol.lengths[-1])
    with Claim(study, out, force, tell) as claim:
        begin()
        keeper = Keeper(study, tables, claim, retriever, tell)
        _measure(study, tables, todo, reader, effort, keeper)
        effort.processes.wait()
        store.refresh()
        return keeper.keep() if effort.processes.first else keeper.results()


def _lacks(
    tables: dict[Strategy, Table], todo: Sequence[Group], retriever: Retriever | None
) -> bool:
    """Whether anything is to be read or asked."""
    unread = any(tables[g.strategy].missing(batch) for g in todo for batch in g.batches)
    return unread or any(retriever.unanswered(t) for t in tables.values() if retriever)


def _check_evaluator(study: Study, strategies: Sequence[Strategy]) -> None:
    """Refuse to measure what nothing could be made of.

    Raises:
        ValueError: longppl is asked for, and the strategy that it goes by is not.
    """
    evaluator = study.protocol.evaluator
    if "longppl" in study.protocol.definitions and evaluator not in map(str, strategies):
        raise ValueError(f"longppl goes by {evaluator}, which is not measured; add -s {evaluator}")


def _measure(
    study: Study, tables: dict[Strategy, Table], todo: Sequence[Group],
    reader: Callable[[], Reader], effort: Effort, keeper: Keeper,
) -> None:  # fmt: skip
    """Read and ask all that is missing."""
    processes, store = effort.processes, next(iter(tables.values())).store
    with progress(study, tables, todo, keeper.retriever) as bar:
        locks = None if processes.split else keeper.out / LOCKS
        keeps = processes.first or not processes.split
        worker = Worker(study, tables, store, locks, keeps, reader, bar.read, processes.agree)
        finished = keeper if processes.first else lambda group: None
        worker.run(todo, Budget(effort.budget, processes.agree), finished)
        if keeper.retriever:
            keeper.retriever.run(tables, reader, bar.asked)


def _reader(study: Study, effort: Effort, tell: Callable[[str], None]) -> Callable[[], Reader]:
    @cache
    def load() -> Reader:
        kind = SharedScorer if effort.processes.split else Scorer
        return Reader(kind(study.load()), effort.max_memory, tell)

    return load


class Budget:
    """Whether there is time for the next excerpts, going by what those before them took.

    Args:
        seconds: How much there is; None for as much as it takes.
        agree: As in `Processes`.
    """

    def __init__(self, seconds: float | None, agree: Callable[[bool], bool]) -> None:
        self.seconds, self.agree = seconds, agree
        self._began = time.monotonic()
        self._turns: dict[int, bool] = {}

    def __call__(self, group: Group) -> bool:
        """Decided once for all strategies, when the first of them comes to excerpts."""
        if self.seconds is None:
            return True
        if group.turn not in self._turns:
            done, elapsed = len(self._turns), time.monotonic() - self._began
            enough = done == 0 or elapsed * (done + 1) / done <= self.seconds
            self._turns[group.turn] = self.agree(enough)
        return self._turns[group.turn]
