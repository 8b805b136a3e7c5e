"""Training runs side by side: perplexity by length before and after, and the cost at short ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ropex.patching.handle import Patch
from ropex.sizes import format_size
from ropex.texts.tokens import usual_front
from ropex.train.ranks import of_first
from ropex.train.recipes.folder import recipe_of
from ropex_eval.report.tables import markdown
from ropex_eval.report.terminal import align, format_perplexity, percent
from ropex_eval.running.numbers import exp
from ropex_eval.scores.statistics import Estimate
from ropex_eval.training.by_length import ByLength, read_lines, write_lines
from ropex_eval.training.callback import FILE, PerplexityByLength

UNTOUCHED = "untouched.jsonl"
"""In the folder of a run: the model as it was, without any strategy."""


class Watch:
    """Measures perplexity by length while `ropex train` runs.

    Args:
        out: The folder of the run.
        every: Steps between measurements; None for the start and the end of each stage.
        bos: The token in front; a tokenizer without one has none if this is `auto`.
        settings: Of `PerplexityByLength`: `data`, `lengths`, `excerpts` and so on.
    """

    def __init__(self, out: Path, every: int | None, bos: str, **settings: Any) -> None:
        self.out, self.every, self.bos, self.settings = out, every, bos, settings

    def plan(self, tokenizer: Any) -> str:
        """What would be measured, in words.

        Raises:
            FileNotFoundError: A text is not there.
            ValueError: It is too short for the lengths.
        """
        measure = self._made(tokenizer, None)
        lengths = ", ".join(map(format_size, measure.protocol.lengths))
        count = len(measure.corpus.excerpts)
        return f"measures  perplexity at {lengths} of {count} excerpts of {measure.corpus.source}"

    def _made(self, tokenizer: Any, every: int | None) -> PerplexityByLength:
        bos = usual_front(tokenizer, self.bos)
        measure = PerplexityByLength(tokenizer, bos=bos, every=every, **self.settings)
        self.settings["data"] = measure.corpus  # read once for all stages
        return measure

    def __call__(self, trainer: Any, stage: int, patch: Patch) -> None:
        """Measure while a stage is trained: at least before and after it."""
        measure = self._made(trainer.processing_class, self.every or trainer.args.max_steps)
        if stage == 1:
            trainer.add_callback(_Untouched(self.out / UNTOUCHED, measure, patch))
        measure.attach(trainer)


class _Untouched(TrainerCallback):
    """Measures the untouched model on the trainer's device, before the first step."""

    def __init__(self, path: Path, measure: PerplexityByLength, patch: Patch) -> None:
        self.path, self.measure, self.patch = path, measure, patch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step or of_first(self.path.is_file()):
            return
        with self.patch.suspended():
            found = self.measure.measured(args, kwargs["model"])
        if state.is_world_process_zero:
            write_lines(self.path, [found.line(0, found)])


@dataclass(frozen=True)
class Stage:
    """How a stage of a run has changed perplexity.

    Attributes:
        strategy: Its text.
        measured: Measurements by step; 0 is under the strategy, before this stage is trained.
    """

    strategy: str
    measured: dict[int, ByLength]

    def at(self, steps: Sequence[int]) -> dict[int, ByLength]:
        """The measurements at some steps; the first and the last by default.

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
        name: Name of its folder.
        untouched: The model as it was, without any strategy.
        stages: Its stages.
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
        recipe = recipe_of(folder)
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
        as_markdown: In GitHub's Markdown instead of for a terminal.

    Raises:
        ValueError: They were not measured on the same tokens, or not at these steps.
    """
    first = runs[0].untouched
    for run in runs:
        if run.untouched.tokens != first.tokens:
            raise ValueError(f"{run.name} and {runs[0].name} were measured on different texts")
    tax = _tax_length(first)
    rows = [["", *map(format_size, first.lengths), f"at {format_size(tax)}, against none"]]
    rows.append(["none", *_cells(first), "--"])
    for run in runs:
        for stage in run.stages:
            for step, found in stage.at(steps).items():
                name = run.name if len(run.stages) == 1 else f"{run.name}, {stage.strategy}"
                when = f"after {step} steps" if step else "before"
                rows.append(
                    [f"{name}, {when}", *_cells(found), _change(found.change_from(first)[tax])]
                )
    return markdown(rows) if as_markdown else align(rows)


def _tax_length(found: ByLength) -> int:
    """The longest measured length within the trained one, or else the shortest."""
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
