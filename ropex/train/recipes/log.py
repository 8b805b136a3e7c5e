"""The log of a training run: lines for people, and a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ropex.files.writing import atomically
from ropex.train.recipes.folder import not_written

FILE = "log.jsonl"


class Log(TrainerCallback):
    """Prints loss, learning rate and speed in one line, and writes them to a file.

    Args:
        path: The file, one line of JSON each time; a resumed run appends to it.
        stage: Number of the stage.
        tokens: Of one step, over all processes.
        tell: Called with each line, on the first process.
    """

    def __init__(self, path: Path, stage: int, tokens: int, tell: Callable[[str], None]) -> None:
        self.path, self.stage, self.tokens, self.tell = path, stage, tokens, tell
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and drop lines of steps that a resumed run repeats."""
        self._began, self._first = time.perf_counter(), state.global_step
        if state.is_world_process_zero and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            done = (self.stage, state.global_step)
            kept = [line for line in lines if (place := _place(line)) and place <= done]
            with atomically(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step too."""
        if state.global_step == state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write and print the line of a step."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        done = state.global_step - self._first
        speed = done * self.tokens / max(time.perf_counter() - self._began, 1e-9)
        line = {
            "stage": self.stage,
            "step": state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs.get("learning_rate"),
            "tokens_per_second": round(speed),
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise not_written(self.path, error) from error
        left = (state.max_steps - state.global_step) * self.tokens / speed
        self.tell(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
            f"rate {logs.get('learning_rate', 0.0):.3g}  {speed:,.0f} tokens/s  "
            f"{_clock(left)} left"
        )


def _place(line: str) -> tuple[int, int] | None:
    """Stage and step of a line; None if a killed run left it half written."""
    try:
        content = json.loads(line)
        return int(content["stage"]), int(content["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
