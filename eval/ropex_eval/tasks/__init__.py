"""Retrieval tasks: what a model finds in its context, by length and depth."""

from ropex_eval.tasks.context import Context, Question, Setting, Source
from ropex_eval.tasks.registry import TASKS, Task, contexts, show
from ropex_eval.tasks.scores import Sample, ask, rows, wilson

__all__ = [
    "TASKS", "Context", "Question", "Sample", "Setting", "Source", "Task", "ask", "contexts",
    "rows", "show", "wilson",
]  # fmt: skip
