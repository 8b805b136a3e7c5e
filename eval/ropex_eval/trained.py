"""Training runs side by side: perplexity by length before and after, and what short texts pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ropex.sizes import format_size
from ropex.train.run import RECIPE
from ropex_eval.by_length import ByLength, read_lines, write_lines
from ropex_eval.callback import FILE, PerplexityByLength
from ropex_eval.numbers import exp
from ropex_eval.statistics import Estimate
from ropex_eval.tables import markdown
from ropex_eval.terminal import align, format_perplexity, percent

UNTOUCHED = "untouched.jsonl"
"""In the folder of a run: the model as it was, without any strategy."""


class Watch:
    """Measures perplexity by length while `ropex train` runs.

    Args:
        out: The folder of the run.
        every: Steps between measurements; None for the start and the end of each stage.
        settings: Of `PerplexityByLength`: `data`, `lengths`, `excerpts` and so on.
    """

    def __init__(self, out: Path, every: int | None = None, **settings: Any) -> None:
        self.out, self.every, self.settings = out, every, settings

    def begins(self, model: Any, tokenizer: Any) -> None:
        """Measure the model as it was, unless that is done."""
        self.settings["tokenizer"] = tokenizer
        first = PerplexityByLength(**self.settings)
        self.settings["data"] = first.corpus  # read once for all stages
        if not (self.out / UNTOUCHED).is_file():
            found = first.measure(model)
            write_lines(self.out / UNTOUCHED, [found.line(0, found)])

    def trains(self, trainer: Any, stage: int) -> None:
        """Measure while a stage is trained: at least before and after it."""
        every = self.every or trainer.args.max_steps
        PerplexityByLength(**{**self.settings, "every": every}).attach(trainer)


@dataclass(frozen=True)
class Stage:
    """What a stage of a run has done to perplexity.

    Attributes:
        strategy: Its text.
        measured: What was measured, by the number of steps before it; 0 is under the strategy,
            before any training of this stage.
    """

    strategy: str
    measured: dict[int, ByLength]

    def at(self, steps: Sequence[int]) -> dict[int, ByLength]:
        """What was measured after some numbers of steps; the first and the last if none is given.

        Raises:
            ValueError: Nothing was measured there.
        """
        if not steps:
            steps = sorted({min(self.measured), max(self.measured)})
        if missing := [step for step in steps if step not in self.measured]:
            known = ", ".join(map(str, self.measured))
            raise ValueError(
                f"{self.strategy} was not measured at step {missing[0]}, but at {known}"
            )
        return {step: self.measured[step] for step in steps}


@dataclass(frozen=True)
class Trained:
    """A run of a recipe.

    Attributes:
        name: Of its folder.
        untouched: The model as it was, without any strategy.
        stages: What each did.
    """

    name: str
    untouched: ByLength
    stages: tuple[Stage, ...]

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Read the folder of a run.

        Raises:
            FileNotFoundError: It holds no run, or nothing was measured.
            ValueError: A file is damaged.
        """
        if not (folder / RECIPE).is_file():
            raise FileNotFoundError(f"{folder} holds no run of ropex train")
        recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        untouched = read_lines(folder / UNTOUCHED)
        stages = []
        for number, said in enumerate(recipe["stages"], start=1):
            if lines := read_lines(folder / f"stage-{number}" / FILE):
                measured = {line["step"]: ByLength.of_line(line) for line in lines}
                stages.append(Stage(said["strategy"], measured))
        if not untouched or not stages:
            raise FileNotFoundError(
                f"nothing was measured in {folder}; a recipe says what to measure under evaluate"
            )
        return cls(folder.name, ByLength.of_line(untouched[0]), tuple(stages))


def table(runs: Sequence[Trained], steps: Sequence[int] = (), *, as_markdown: bool = False) -> str:
    """Perplexity by length of runs, with 95 % intervals, and the change at the trained length.

    Args:
        runs: The runs.
        steps: After which steps of each stage; the first and the last measurement if empty.
        as_markdown: A table of GitHub's Markdown, and not one for a terminal.

    Raises:
        ValueError: They were not measured on the same tokens, or not at these steps.
    """
    first = runs[0].untouched
    for run in runs:
        if run.untouched.tokens != first.tokens:
            raise ValueError(f"{run.name} and {runs[0].name} were measured on other texts")
    tax = _tax_length(first)
    rows = [["", *map(format_size, first.lengths), f"at {format_size(tax)}, against none"]]
    rows.append(["none", *_cells(first), "--"])
    for run in runs:
        for stage in run.stages:
            for step, found in stage.at(steps).items():
                name = f"{run.name}: {stage.strategy}, {step} steps"
                rows.append([name, *_cells(found), _change(found.change_from(first)[tax])])
    return markdown(rows) if as_markdown else align(rows)


def _tax_length(found: ByLength) -> int:
    """The longest measured length within the trained one, else the shortest."""
    within = [n for n in found.lengths if found.trained_length and n <= found.trained_length]
    return within[-1] if within else found.lengths[0]


def _cells(found: ByLength) -> list[str]:
    return [_cell(found.estimates[length]) for length in found.lengths]


def _cell(found: Estimate) -> str:
    low, high = found.interval
    if low is None or high is None:
        return format_perplexity(exp(found.mean))
    middle, least, most = (format_perplexity(exp(value)) for value in (found.mean, low, high))
    return f"{middle} ({least} to {most})"


def _change(found: Estimate) -> str:
    return percent(found.mean, *found.interval)
