"""What a recipe would do, and the memory that it takes, before any of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ropex.loading import find, load_skeleton, load_tokenizer
from ropex.migration import read_strategy
from ropex.patching import Patch, patch
from ropex.shape import Shape
from ropex.sizes import format_size, gib
from ropex.train.recipe import Recipe, Stage
from ropex.train.rows import Cutter
from ropex.train.stages import collator_of

_LOGIT_BYTES = 12  # in the model's number type, in float32, and the gradient
_CHUNK = 32 * 2**20  # of logits that are computed a few rows at a time


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, if one holds the whole model.

    Attributes:
        weights: Of the model.
        gradients: Of what is trained.
        optimizer: Two numbers for each weight that is trained, by AdamW.
        activations: Of the rows that are read at a time.
        logits: Of the same, or of a few of their tokens.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __str__(self) -> str:
        parts = {name: gib(value) for name, value in vars(self).items()}
        return f"{gib(self.total)}: " + ", ".join(f"{name} {text}" for name, text in parts.items())


def memory_of(recipe: Recipe, stage: Stage, shape: Shape, trained: int) -> Memory:
    """Memory of a stage by formula; what frameworks and fragmentation add is not in it.

    Args:
        recipe: What holds for all stages.
        stage: What is read at a time.
        shape: Of the model.
        trained: Number of the weights that are trained.
    """
    training = stage.training
    tokens = training.micro_batch * stage.window
    size = 2 if recipe.autocast else shape.bytes
    # Of one layer: inputs, queries, keys, values, what attention gives, norms, the feed-forward part.
    inside = size * (6 * shape.hidden + 2 * shape.attention + 2 * shape.keys + 3 * shape.inner)
    kept = shape.layers * shape.hidden * size
    activations = kept + inside if training.gradient_checkpointing else shape.layers * inside
    logits = tokens * shape.vocabulary * _LOGIT_BYTES
    return Memory(
        shape.held() + (2 * shape.weights if recipe.autocast else 0),
        trained * shape.bytes,
        2 * trained * shape.bytes,
        tokens * activations,
        min(logits, _CHUNK) if training.chunked_loss else logits,
    )


def plan(recipe: Recipe) -> str:
    """Check a recipe against its model and its texts, and say what it would do.

    No weight is read.

    Raises:
        FileNotFoundError: A model or a text is not there.
        ValueError: A strategy does not fit the model, or a text has no row.
    """
    folder = find(recipe.model)
    model = load_skeleton(folder, trust_remote_code=recipe.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.trust_remote_code)
    shape = Shape.of(model, getattr(torch, recipe.dtype))
    trained = _trained(recipe, shape)
    lines = [f"model     {recipe.model}: {shape.weights:,} weights, {trained:,} of them trained"]
    for number, stage in enumerate(recipe.stages, start=1):
        with patch(model, read_strategy(stage.strategy), trained_length=recipe.trained_length) as p:
            lines += _stage(number, stage, p, Cutter.of(stage.data, tokenizer, recipe.model))
        lines.append(f"  memory    {memory_of(recipe, stage, shape, trained)}")
    return "\n".join(lines)


def _stage(number: int, stage: Stage, handle: Patch, cutter: Cutter) -> list[str]:
    collator_of(stage, handle, 0)  # its numbers are checked
    for source in stage.data.sources:
        next(cutter.rows(source))
    training, length = stage.training, stage.window
    tokens = training.batch * length
    reach = format_size(handle.target_length)
    drawn = f", at positions that {stage.positions.sampler} draws" if stage.positions else ""
    texts = ", ".join(source.text for source in stage.data.sources)
    return [
        f"stage {number}   {stage.strategy}: trained at {format_size(handle.rope.trained_length)}"
        f", for {reach}",
        f"  reads     {format_size(length)} tokens at once{drawn}, from {texts}",
        f"  steps     {training.steps} of {training.batch} rows, {tokens:,} tokens; "
        f"{training.steps * tokens:,} tokens in all",
    ]


def _trained(recipe: Recipe, shape: Shape) -> int:
    """Number of the weights that are trained: all, or those of adapters and what goes with them."""
    if recipe.lora is None:
        return shape.weights
    each = recipe.lora.rank * (shape.hidden + shape.attention) * len(recipe.lora.targets)
    embeddings = 2 * shape.vocabulary * shape.hidden if "embeddings" in recipe.lora.also else 0
    return shape.layers * each + embeddings
