"""A `Trainer` that leaves nothing half written, and the checks that stop it."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from ropex.checkpoints.load_save import save
from ropex.files.writing import atomically
from ropex.train.ranks import agreed
from ropex.train.recipes.folder import not_written
from ropex.train.recipes.recipe import Recipe, Stage
from ropex.train.recipes.whole import newest, seal


class RecipeTrainer(Trainer):
    """`transformers.Trainer`, with rows in the given order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As transformers does it, without a cache: with one, packed documents see each other."""
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it.

        Raises:
            ValueError: A package that it needs is not installed.
        """
        try:
            return super().create_optimizer(*args, **kwargs)
        except ImportError as error:
            raise ValueError(f"optimizer: {' '.join(str(error).split())}") from None

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # every process has written its part
            if self.args.should_save:
                seal(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(f"{not_written(folder, error)}{_kept(folder.parent)}") from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model with its `ropex.json`, even if no config can hold its strategy."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save(self.accelerator.unwrap_model(self.model), folder, state_dict=state_dict)
        with atomically(folder / "training_args.bin") as temporary:
            torch.save(self.args, temporary)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)


class FiniteGradients(TrainerCallback):
    """Stops a run before a step that would make weights NaN or infinite."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check all gradients; a loss that is not a number has such gradients too.

        Raises:
            ValueError: Some gradient is not a number, in any process.
        """
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        parts = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
        finite = bool(torch.isfinite(get_total_norm(parts)))  # one number leaves the device
        if agreed(None if finite else "not finite"):
            raise ValueError(
                f"the loss or its gradient is not a number at step {state.global_step + 1}; lower "
                f"training.learning_rate or raise training.warmup{_kept(Path(args.output_dir))}"
            )


def _kept(folder: Path) -> str:
    """What is kept after a failure, in words."""
    last = newest(folder)
    return f"; {last} is kept, and the same command resumes from it" if last else ""


def check_reporters(names: tuple[str, ...], *, installed: bool = True) -> None:
    """Check that transformers can report to these.

    Args:
        names: Of a recipe.
        installed: Whether they must be installed.

    Raises:
        ValueError: It cannot.
    """
    known = ["all", "none", *sorted(INTEGRATION_TO_CALLBACK)]
    here = known[:2] + get_available_reporting_integrations()
    for name in names:
        if name not in known:
            raise ValueError(f"report_to: {name!r} is unknown; choose {', '.join(known)}")
        if installed and name not in here:
            raise ValueError(f"report_to: {name} is not installed; install it, or report to none")


def arguments_of(recipe: Recipe, stage: Stage, folder: Path) -> TrainingArguments:
    """The numbers of a recipe as transformers' arguments.

    Raises:
        ValueError: The rows of a step cannot be shared evenly by the processes.
    """
    training, cpu = stage.training, not accelerated()
    processes = PartialState(cpu=cpu).num_processes // sharing_a_row()
    share, rest = divmod(training.batch, training.micro_batch * processes)
    if rest:
        raise ValueError(
            f"training.batch is {training.batch}, and {processes} processes read "
            f"{training.micro_batch} rows at a time each; make it a multiple of their product"
        )
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=training.steps,
        per_device_train_batch_size=training.micro_batch,
        gradient_accumulation_steps=share,
        learning_rate=training.learning_rate,
        lr_scheduler_type=_SCHEDULES[training.schedule],
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta2=training.beta2,
        max_grad_norm=training.max_grad_norm,
        optim=recipe.optimizer,
        bf16=recipe.autocast,
        **_checkpointing(training.gradient_checkpointing),
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=training.keep,
        logging_steps=min(training.log_every, training.steps),
        logging_nan_inf_filter=False,  # a loss that is not a number stops the run
        remove_unused_columns=False,  # collators read `index` and `lengths`
        dataloader_pin_memory=not cpu,
        use_cpu=cpu,
        seed=recipe.seed,
        report_to=list(recipe.report_to),
        ddp_find_unused_parameters=False,
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Arguments for recomputing activations, in transformers 5 or 4."""
    known = TrainingArguments.__dataclass_fields__
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if n in known)
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING") == "true":  # FSDP does it
        return {}
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def sharing_a_row() -> int:
    """Number of processes that share a row, by context or sequence parallelism."""
    sizes = ("PARALLELISM_CONFIG_CP_SIZE", "PARALLELISM_CONFIG_SP_SIZE")
    return math.prod(int(os.environ.get(name, "1")) for name in sizes)


_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def accelerated() -> bool:
    """Whether there is a device besides the CPU."""
    return torch.accelerator.is_available()
