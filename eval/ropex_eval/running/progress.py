"""The progress bar of a run; it counts cost and not passes, so that the time left is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ropex.strategies.base import Strategy
from ropex_eval.measure.memory import Shape
from ropex_eval.running.retrieving import Retriever
from ropex_eval.running.work import Group
from ropex_eval.study.passes import Pass
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table
from ropex_eval.tasks import Task

_STYLE = "{percentage:3.0f}% |{bar:30}| {elapsed} so far, {remaining} left  {desc}"


class Bar:
    """Moves a bar on as work is finished.

    Args:
        bar: Of tqdm.
        shape: Of the model.
        excerpts: How many there are.
    """

    def __init__(self, bar: Any, shape: Shape, excerpts: int) -> None:
        self.bar, self.shape, self.excerpts = bar, shape, excerpts

    def read(self, strategy: Strategy, batch: Sequence[Pass]) -> None:
        """Passes that ran side by side are done."""
        what = f"{strategy}, excerpt {batch[-1].excerpt + 1}/{self.excerpts}"
        self.bar.set_description_str(what, refresh=False)
        self.bar.update(sum(self.shape.work(each.length) for each in batch))

    def asked(self, strategy: Strategy, task: Task, length: int) -> None:
        """The questions of one context are answered."""
        self.bar.set_description_str(f"{strategy}, {task.name} at {length}", refresh=False)
        self.bar.update(self.shape.work(length))


@contextmanager
def progress(
    study: Study,
    tables: Mapping[Strategy, Table],
    todo: Sequence[Group],
    retriever: Retriever | None,
) -> Iterator[Bar]:
    """A bar for all that is missing."""
    shape = Shape.of(study.skeleton)
    lengths = [
        each.length
        for group in todo
        for batch in group.batches
        for each in tables[group.strategy].missing(batch)
    ]
    for table in tables.values() if retriever else ():
        lengths += retriever.unanswered(table) if retriever else []
    total = sum(map(shape.work, lengths))
    with tqdm(total=total, disable=None, leave=False, bar_format=_STYLE) as bar:
        yield Bar(bar, shape, len(study.corpus.excerpts))
