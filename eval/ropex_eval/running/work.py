"""The work of a run, in the order in which it is done, shared between processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ropex.strategies.base import Strategy
from ropex_eval.measure.reader import BATCH_TOKENS, Reader
from ropex_eval.study.passes import Pass, batches, passes
from ropex_eval.study.store import Store
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table


@dataclass(frozen=True, eq=False)
class Group:
    """Passes under one patch: a strategy, one plan of it, and a few excerpts.

    Attributes:
        turn: Which excerpts; all strategies have their turn before the next excerpts.
        strategy: The strategy.
        at: Tokens of the sequences that it is held at.
        batches: The passes, as they run side by side.
    """

    turn: int
    strategy: Strategy
    at: int
    batches: tuple[tuple[Pass, ...], ...]


def groups(study: Study, tables: dict[Strategy, Table]) -> list[Group]:
    """All work, done or not: excerpts in turns, so that what is finished can be compared."""
    longest = study.protocol.lengths[-1]
    per_turn = max(1, BATCH_TOKENS // longest)
    found: list[Group] = []
    wanted = {s: passes(study.corpus, study.protocol, s, study.rope) for s in tables}
    for turn, first in enumerate(range(0, len(study.corpus.excerpts), per_turn)):
        for strategy, every in wanted.items():
            here = [each for each in every if first <= each.excerpt < first + per_turn]
            for at in sorted({each.at for each in here}):
                run = batches([each for each in here if each.at == at], BATCH_TOKENS)
                found.append(Group(turn, strategy, at, tuple(map(tuple, run))))
    return found


class Worker:
    """Does groups of work, each once among all processes that share a folder.

    Args:
        study: What is measured.
        tables: What is known so far, by strategy.
        store: Where it goes.
        locks: Folder of the locks; a lock ends with the process that holds it. None where no other
            process takes work away from this one.
        keeps: Whether this process writes what it has measured.
        reader: The reader of the loaded model, which is loaded when it is first needed.
        done: Called with each batch that this process has finished.
        agree: As in `Processes`.
    """

    def __init__(
        self, study: Study, tables: dict[Strategy, Table], store: Store, locks: Path | None,
        keeps: bool, reader: Callable[[], Reader], done: Callable[[Strategy, Sequence[Pass]], None],
        agree: Callable[[Any], Any] = lambda given: given,
    ) -> None:  # fmt: skip
        self.study, self.tables, self.store, self.locks = study, tables, store, locks
        self.keeps, self.reader, self.done, self.agree = keeps, reader, done, agree

    def run(
        self,
        todo: Sequence[Group],
        goes_on: Callable[[Group], bool] = lambda group: True,
        finished: Callable[[Group], None] = lambda group: None,
    ) -> None:
        """Do what nobody else is doing, and then what others have left undone.

        Args:
            todo: In the order in which it is done.
            goes_on: Whether a group that is not done is still to be begun.
            finished: Called with each group that nothing is missing of any more.
        """
        left = []
        for group in todo:
            if self._missing(group) and not goes_on(group):
                break
            if self._try(group, wait=False):
                finished(group)
            else:
                left.append(group)
        for group in left:
            self._try(group, wait=True)
            finished(group)

    def _try(self, group: Group, wait: bool) -> bool:
        """Do a group; False if another process is at it, and it is not to be waited for."""
        if not self._missing(group):
            return True
        if self.locks is None:
            self._do(group)
            return True
        self.locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.locks / f"{self._path(group).stem}.lock")
        try:
            with lock.acquire(timeout=-1 if wait else 0):
                self._do(group)
        except Timeout:
            return False
        return True

    def _missing(self, group: Group) -> list[tuple[Pass, ...]]:
        """The parts of batches that nothing stored answers for."""
        table = self.tables[group.strategy]
        for batch in group.batches:
            if left := table.missing(batch):  # another process may have measured it since,
                for part in (batch, left):  # all of it, or what was left of it
                    self.store.take(self._batch_path(table, part))
        found = (tuple(table.missing(batch)) for batch in group.batches)
        missing: list[tuple[Pass, ...]] = self.agree([batch for batch in found if batch])
        return missing

    def _do(self, group: Group) -> None:
        todo, table = self._missing(group), self.tables[group.strategy]
        if not todo:
            return
        reader = self.reader()
        with self.study.patched(reader.scorer.model, group.strategy, group.at):
            for batch in todo:
                ids = [each.ids(self.study.corpus) for each in batch]
                nll = reader.read(batch, ids)
                if self.keeps:
                    self.store.put(table.keys.at(batch[0].length), batch, ids, nll)
                self.done(group.strategy, batch)

    def _path(self, group: Group) -> Path:
        return self._batch_path(self.tables[group.strategy], group.batches[0])

    def _batch_path(self, table: Table, batch: Sequence[Pass]) -> Path:
        ids = [each.ids(self.study.corpus) for each in batch]
        return self.store.path(table.keys.at(batch[0].length), batch, ids)
