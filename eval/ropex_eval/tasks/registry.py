"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ropex_eval.tasks.context import Context, Setting, Source
from ropex_eval.tasks.counts import cwe, fwe
from ropex_eval.tasks.induction import induction
from ropex_eval.tasks.lists import kv, vt
from ropex_eval.tasks.needles import multikey, multiquery, multivalue, niah, passkey


@dataclass(frozen=True)
class Task:
    """Something that a model has to find in its context.

    Attributes:
        name: In results and on the command line.
        help: One line.
        build: Makes a context; deterministic for a setting.
        placed: Whether it is asked at depths; otherwise once about the whole context.
        by_token: Whether the score is the share of right tokens; otherwise of right answers.
    """

    name: str
    help: str
    build: Callable[[Setting], Context]
    placed: bool = True
    by_token: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("passkey", "a five-digit number, hidden at one depth", passkey),
        Task("niah", "the number of a city, hidden at one depth", niah),
        Task("niah_multikey", "several cities with a number each; one is asked for", multikey),
        Task("niah_multivalue", "several numbers of one city; all are asked for", multivalue),
        Task("niah_multiquery", "several cities with a number each; all asked for", multiquery),
        Task("kv", "JSON of UUID pairs; one key is asked for", kv),
        Task("vt", "variables set to each other; all with one value", vt, placed=False),
        Task("cwe", "the ten commonest words of a numbered list", cwe, placed=False),
        Task("fwe", "the three commonest codes of a coded text", fwe, placed=False),
        Task("induction", "random tokens, a piece of which comes again", induction, by_token=True),
    )
}


def contexts(
    task: Task, source: Source, lengths: Sequence[int], depths: Sequence[float], samples: int,
    seed: int = 0,
) -> Iterator[Context]:  # fmt: skip
    """All contexts of a task, the shortest first.

    Args:
        task: One of `TASKS`.
        source: The material.
        lengths: Tokens of a prompt with its answer.
        depths: From 0 to 1; tasks without places ignore them.
        samples: Contexts of each length, at least 1.
        seed: Of all random numbers.

    Raises:
        ValueError: An argument is out of range, or a length is too short for the task.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}, it must be at least 1")
    if task.placed and not depths:
        raise ValueError(f"{task.name} needs depths from 0 to 1; none is given")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise ValueError(f"depth {depth} is not between 0 (the beginning) and 1 (the end)")
    chosen = tuple(sorted({float(depth) for depth in depths})) if task.placed else ()
    for length in sorted(set(lengths)):
        for sample in range(samples):
            yield task.build(Setting(source, task.name, length, chosen, sample, seed))


def show(task: Task, source: Source, length: int, depth: float = 0.5, seed: int = 0) -> str:
    """One prompt of a task, and the expected answer behind it in brackets."""
    (context,) = contexts(task, source, [length], [depth], 1, seed)
    record = context.records()[0]
    return f"{record['prompt']} [{', '.join(record['expected'])}]"
