"""Trainings that something happens to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.support.models import tokens


class At(TrainerCallback):
    """Does something to the model when a step has ended."""

    def __init__(self, step: int, act: Callable[[Any], Any]) -> None:
        self.step, self.act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.act(kwargs["model"])


def trainer(model: Any, folder: Path, *callbacks: Any, **changes: Any) -> Any:
    rows = [{"input_ids": row, "labels": row} for row in tokens(40, rows=8)]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", **changes,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **settings)
    return Trainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:2],
        callbacks=list(callbacks),
    )  # fmt: skip


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def rounded(model: Any) -> None:
    table = model.model.rotary_emb.inv_freq
    table.copy_(table.bfloat16())
