"""Retrieval tasks in a run: asked once, kept by content, and put together as rows of results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ropex.strategies.base import Strategy
from ropex_eval.measure.answers import AnswerScorer
from ropex_eval.measure.reader import Reader
from ropex_eval.running.claim import LOCKS
from ropex_eval.scores.results import Retrieval, write
from ropex_eval.study.passes import length_classes
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table
from ropex_eval.tasks import TASKS, Context, Sample, Source, Task, ask, contexts, rows


@dataclass(frozen=True)
class Questions:
    """What is asked, at every length of the protocol.

    Attributes:
        tasks: Names of tasks.
        depths: Where answers stand, from 0 to 1.
        samples: Contexts of each length.
        seed: Of everything random.
    """

    tasks: tuple[str, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")


class Retriever:
    """Asks the questions of a run, and keeps the answers.

    Args:
        study: What is measured.
        questions: What is asked.
        tokenizer: Of the model.
        out: Folder of the run.

    Attributes:
        left_out: What is not asked, and why, once `asked` has been worked out.
    """

    def __init__(self, study: Study, questions: Questions, tokenizer: Any, out: Path) -> None:
        self.study, self.questions, self.out = study, questions, out
        self.tokenizer, self.left_out = tokenizer, list[str]()

    @classmethod
    def asking(
        cls, study: Study, questions: Questions, out: Path, tell: Callable[[str], None]
    ) -> Retriever:
        """A retriever with its contexts; `tell` gets a sentence for each length that is too short.

        Raises:
            ValueError: Every length is too short for a task.
        """
        retriever = cls(study, questions, study.tokenizer, out)
        for text in retriever.asked and retriever.left_out:
            tell(f"left out: {text}")
        return retriever

    @cached_property
    def asked(self) -> list[tuple[Task, Context]]:
        """All contexts, task by task, the shortest first.

        Raises:
            ValueError: Every length is too short for a task.
        """
        source = Source.of(self.study.skeleton, self.tokenizer, self.study.corpus.bos)
        return [pair for name in self.questions.tasks for pair in self._of(TASKS[name], source)]

    def _of(self, task: Task, source: Source) -> list[tuple[Task, Context]]:
        """The contexts of a task, at the lengths that it fits into."""
        asked, found = self.questions, []
        for length in self.study.protocol.lengths:
            given = (asked.depths, asked.samples, asked.seed)
            try:
                found += [(task, each) for each in contexts(task, source, [length], *given)]
            except ValueError as error:
                if length == self.study.protocol.lengths[-1] and not found:
                    raise
                self.left_out.append(str(error))
        return found

    def run(
        self,
        tables: dict[Strategy, Table],
        reader: Callable[[], Reader],
        advance: Callable[[Strategy, Task, int], None],
    ) -> None:
        """Ask all that was not answered yet, each once among processes that share the folder."""
        for strategy, table in tables.items():
            lengths = self.study.protocol.lengths
            classes = length_classes(strategy, self.study.rope, lengths)
            for length in lengths:
                todo = [pair for pair in self._at(length) if not self._path(table, *pair).is_file()]
                if not todo:
                    continue
                model = reader().scorer.model
                with self.study.patched(model, strategy, classes[length]):
                    scorer = AnswerScorer(model)
                    left = list(todo)
                    for wait in (False, True):  # for those that another process is at
                        for pair in list(left):
                            if self._ask(scorer, table, pair, wait):
                                advance(strategy, pair[0], length)
                                left.remove(pair)

    def _at(self, length: int) -> Iterator[tuple[Task, Context]]:
        return ((t, c) for t, c in self.asked if c.setting.length == length)

    def _ask(
        self, scorer: AnswerScorer, table: Table, pair: tuple[Task, Context], wait: bool
    ) -> bool:
        """Ask one context; False if another process is at it, and it is not to be waited for."""
        path = self._path(table, *pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.out / LOCKS).mkdir(exist_ok=True)
        lock = FileLock(self.out / LOCKS / f"{path.stem}.lock")
        try:
            with lock.acquire(timeout=-1 if wait else 0):
                if not path.is_file():  # another process may have answered it meanwhile
                    answers = [asdict(sample) for sample in ask(scorer, *pair)]
                    write(path, json.dumps({"answers": answers, "sha256": _digest(answers)}) + "\n")
        except Timeout:
            return False
        return True

    def _path(self, table: Table, task: Task, context: Context) -> Path:
        """Where the answers to a context are kept: by all that decides them."""
        branches = [
            (branch.at, branch.ids, branch.answer)
            for question in context.questions
            for branch in question.branches
        ]
        about = [task.name, table.keys.at(context.setting.length), list(context.trunk), branches]
        return self.out / "answers" / f"{_digest(about)[:32]}.json"

    def discard_damaged(self, tables: Sequence[Table], tell: Callable[[str], None]) -> None:
        """Remove files that do not hold what was written, so that they are asked again."""
        for table in tables:
            for task, context in self.asked:
                path = self._path(table, task, context)
                if path.is_file() and _read(path) is None:
                    tell(f"{path} is damaged, and what it held is asked again")
                    path.unlink(missing_ok=True)

    def unanswered(self, table: Table) -> list[int]:
        """The lengths of the contexts that a strategy has not been asked about."""
        return [
            context.setting.length
            for task, context in self.asked
            if not self._path(table, task, context).is_file()
        ]

    def rows(self, text: str, table: Table) -> list[Retrieval]:
        """How often a strategy finds the answers, by task, length and depth."""
        found: list[Sample] = []
        for task, context in self.asked:
            found += _read(self._path(table, task, context)) or ()
        return rows(text, found)

    def save_prompts(self) -> None:
        """Write every prompt, question and expected answer, one line each."""
        (self.out / "samples").mkdir(exist_ok=True)
        for name in self.questions.tasks:
            records = [r for task, c in self.asked if task.name == name for r in c.records()]
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            write(self.out / "samples" / f"{name}.jsonl", "\n".join(lines) + "\n")


def _read(path: Path) -> list[Sample] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["sha256"] != _digest(content["answers"]):
            return None
        return [Sample(**each) for each in content["answers"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
