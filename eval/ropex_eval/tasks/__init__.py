"""Retrieval tasks: what a model finds in its context, by length and depth."""

from ropex_eval.tasks.context import Context, Question, Setting, Source
from ropex_eval.tasks.registry import TASKS, Task, contexts, show
from ropex_eval.tasks.scores import Cell, Sample, ask, cells, measure_task, wilson

__all__ = [
    "TASKS", "Cell", "Context", "Question", "Sample", "Setting", "Source", "Task", "ask", "cells",
    "contexts", "measure_task", "show", "wilson",
]  # fmt: skip
