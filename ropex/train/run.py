"""Run a recipe, stage by stage; what is done is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from accelerate import PartialState
from filelock import FileLock, Timeout
from transformers import PrinterCallback, ProgressCallback, Trainer, set_seed

from ropex.files import atomically
from ropex.loading import find, load_model, load_tokenizer
from ropex.patching import Patch
from ropex.storage import save
from ropex.train.adapters import with_adapters
from ropex.train.guard import RopeGuard
from ropex.train.log import FILE, Log
from ropex.train.pools import rows_of
from ropex.train.recipe import Recipe, Stage
from ropex.train.rows import Cutter, MixedRows
from ropex.train.stages import collator_of, prepared
from ropex.train.trainer import (
    FiniteGradients,
    RecipeTrainer,
    accelerated,
    arguments_of,
    last_whole,
)

_MANY = 4
"""Times that a text is read, from which on it is said."""

RECIPE, FINAL, ADAPTER = "recipe.yaml", "final", "adapter"


class Watch(Protocol):
    """Who looks on while a recipe runs."""

    def __call__(self, trainer: Trainer, stage: int, patch: Patch) -> None:
        """A stage is about to be trained, under a patch; stages count from 1."""


@dataclass(frozen=True)
class Run:
    """A recipe at work.

    Attributes:
        recipe: What to do.
        source: The folder of the model that it starts from.
        out: Where everything goes.
        model: The model, with adapters if the recipe has some.
        tokenizer: Of the model.
        watch: Who looks on.
        tell: Called with lines for a person.
    """

    recipe: Recipe
    source: Path
    out: Path
    model: Any
    tokenizer: Any
    watch: Watch | None
    tell: Callable[[str], None]

    def stages(self) -> None:
        """Train every stage that is not trained yet, and write the last one's model."""
        for number, stage in enumerate(self.recipe.stages, start=1):
            given = (self.recipe.trained_length, self.recipe.autocast)
            with prepared(self.model, stage, *given) as handle:
                trainer = self._trainer(number, stage, handle)
                self._train(number, stage, trainer, handle)
                if number == len(self.recipe.stages):
                    self._finish(trainer)

    def _trainer(self, number: int, stage: Stage, handle: Patch) -> RecipeTrainer:
        recipe, seed = self.recipe, self.recipe.seed + number
        cutter = Cutter.of(stage.data, self.tokenizer, recipe.model)
        rows = rows_of(stage, cutter, self.out / "rows", seed)
        if isinstance(rows, MixedRows):
            self._tell_rounds(stage, rows.rounds)
        cached = self.model.config.use_cache
        trainer = RecipeTrainer(
            model=self.model,
            args=arguments_of(recipe, stage, self.out / f"stage-{number}"),
            train_dataset=rows,
            data_collator=collator_of(stage, handle, seed),
            processing_class=self.tokenizer,
        )
        self.model.config.use_cache = cached  # Trainer of transformers 5 would save it as false
        for each in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(each)
        return trainer

    def _tell_rounds(self, stage: Stage, rounds: list[float]) -> None:
        for source, times in zip(stage.data.sources, rounds, strict=True):
            if times > _MANY and PartialState().is_main_process:
                self.tell(f"{source.text} is short: each row is read {times:.1f} times")

    def _train(self, number: int, stage: Stage, trainer: RecipeTrainer, handle: Patch) -> None:
        """Train a stage, go on with it, or load what it has left."""
        last = last_whole(self.out / f"stage-{number}")
        if last is not None and last.name == f"checkpoint-{stage.training.steps}":
            trainer._load_from_checkpoint(str(last))
            return
        tokens = stage.training.batch * stage.window
        trainer.add_callback(Log(self.out / FILE, number, tokens, self.tell))
        trainer.add_callback(FiniteGradients())
        if self.watch is not None:
            self.watch(trainer, number, handle)
        trainer.add_callback(RopeGuard(self.model))  # sees what the others want saved
        trainer.train(resume_from_checkpoint=None if last is None else str(last))

    def _finish(self, trainer: RecipeTrainer) -> None:
        """Write the model as plain transformers loads it, and the adapters beside it."""
        state = PartialState()
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:  # each process has a part
            trainer.save_model(str(self.out / (FINAL if self.recipe.lora is None else ADAPTER)))
        elif state.is_main_process:
            model = self.model
            if self.recipe.lora is not None:
                write_folder(self.out / ADAPTER, lambda folder: save(self.model, folder))
                model = model.float().merge_and_unload()  # what is added to a weight may be small
            write_folder(self.out / FINAL, lambda folder: self._write(model, folder))
        state.wait_for_everyone()

    def _write(self, model: Any, folder: Path) -> None:
        save(model, folder)
        self.tokenizer.save_pretrained(folder)


def train(
    recipe: Recipe,
    out: Path,
    watch: Watch | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Run a recipe, or go on where it was left.

    Args:
        recipe: What to do.
        out: Folder for checkpoints, rows, logs and the final model.
        watch: Who looks on.
        tell: Called with lines for a person.

    Raises:
        FileExistsError: The folder holds the run of another recipe.
        FileNotFoundError: A model or a text is not there.
        OSError: A checkpoint could not be written; the ones before are whole.
        ValueError: The recipe does not fit the model or the texts, or the loss is no number.
    """
    with ExitStack() as undo:
        if PartialState(cpu=not accelerated()).is_main_process:
            keep_recipe(recipe, out)
            undo.enter_context(_alone(out))
        _run(recipe, out, watch, tell)


def _run(recipe: Recipe, out: Path, watch: Watch | None, tell: Callable[[str], None]) -> None:
    source = find(recipe.model)
    trusted = recipe.trust_remote_code
    tokenizer = load_tokenizer(source, trust_remote_code=trusted)
    model = load_model(source, dtype=recipe.dtype, trust_remote_code=trusted)
    try:
        model.set_attn_implementation(recipe.attention)
    except ImportError as error:
        raise ValueError(f"attention: {' '.join(str(error).split())}") from None
    if recipe.lora is not None:
        set_seed(recipe.seed)  # adapters begin at random
        checkpointed = any(stage.training.gradient_checkpointing for stage in recipe.stages)
        model = with_adapters(model, recipe.lora, checkpointed)
    Run(recipe, source, out, model, tokenizer, watch, tell).stages()


def keep_recipe(recipe: Recipe, out: Path) -> None:
    """Write the recipe into the folder of its run.

    Raises:
        FileExistsError: There is another one.
    """
    content = json.loads(json.dumps(asdict(recipe)))
    path = out / RECIPE
    if any(out.glob("stage-*")):
        there = recipe_of(out)
        if there == content:
            return
        key = next(key for key in content if there.get(key) != content[key])
        raise FileExistsError(
            f"{out} holds the run of another recipe ({key} differs); write elsewhere (-o), or "
            "remove it"
        )
    if out.exists() and not path.is_file() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty and holds no run of a recipe; write elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    with atomically(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def recipe_of(out: Path) -> dict[str, Any]:
    """What `keep_recipe` wrote.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    path = out / RECIPE
    if not path.is_file():
        raise FileNotFoundError(f"{out} holds no run of ropex train")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list):
        raise ValueError(f"{path} is damaged")
    return content


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """See to it that no other run writes there."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FileExistsError(f"another run is at work in {out}; write elsewhere (-o)") from None
    try:
        yield
    finally:
        lock.release()


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, which appears complete or not at all."""
    built = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(built, ignore_errors=True)
    try:
        write(built)
        shutil.rmtree(folder, ignore_errors=True)
        built.rename(folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)
