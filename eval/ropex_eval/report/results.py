"""Results with what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ropex_eval.report import tables, terminal
from ropex_eval.report.plot import plot
from ropex_eval.scores import results as values


@dataclass(frozen=True)
class Results(values.Results):
    """What was measured, with its tables and its picture.

    `ropex_eval.scores.results.Results` is the value alone, which what measures makes and what draws
    reads; this is what a user has in hand. `Results.load(folder)` reads an earlier run.

    Attributes:
        suites: What lm-evaluation-harness found: strategy to task to metrics.

    Example:
        >>> results = Results.load("runs/llama")
        >>> print(results.table())
        >>> results.verdict["yarn:4"].safe
        16384
    """

    suites: dict[str, dict[str, Any]] = field(default_factory=dict)

    def table(self, form: str = "text") -> str:
        """The tables: strategies down, lengths across, one for each definition of perplexity.

        Args:
            form: `text`, as the command line prints it, with verdicts, tasks and suites; or
                `markdown`, `latex` or `csv`, with perplexities and half their 95 % intervals.

        Raises:
            ValueError: There is no such form.
        """
        if form != "text":
            return tables.render(self, form, intervals=True)
        suites = terminal.suites(self.suites)
        return "\n\n".join([terminal.render(self), *([suites] if suites else [])])

    def plot(self, path: Path | str) -> None:
        """Write a PNG of perplexity against length, one line a strategy, with 95 % intervals."""
        plot(self, Path(path))
