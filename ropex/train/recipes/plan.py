"""What a recipe would do, and the memory that it would take."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_skeleton, load_tokenizer
from ropex.model.shape import Shape
from ropex.patching.handle import Patch
from ropex.sizes import format_size, gib
from ropex.train.recipes.adapters import with_adapters
from ropex.train.recipes.recipe import Recipe, Stage
from ropex.train.recipes.rows import Cutter
from ropex.train.recipes.stages import changed, collator_of
from ropex.train.recipes.trainer import arguments_of, check_reporters

_LOGIT_BYTES = 12  # in float32: log-probabilities, their gradient, and that of the logits
_CHUNKED_BYTES = 16  # of a logit of a chunk; see `ropex.train.loss_pass`
_DEVICES = 8  # of the line about FSDP


@dataclass(frozen=True)
class Memory:
    """Bytes on one device that holds the whole model, at the start of the backward pass.

    Attributes:
        weights: Of the model, and of the copies that autocast computes with.
        gradients: Of the trained weights.
        optimizer: AdamW's two numbers for each trained weight.
        activations: Kept in all layers, of the rows that are read at a time.
        logits: Of the same rows, or of a few of their tokens, with gradients.
        layer: Of one recomputed layer, after the logits are freed; 0 without recomputation.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    layer: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        return self._shared + self.activations + max(self.logits, self.layer)

    def on_each(self, devices: int) -> int:
        """Bytes on each of several devices that shard the weights (FSDP, ZeRO-3).

        The layer whose weights are gathered to compute is not included.
        """
        return self.total - self._shared + -(-self._shared // devices)

    @property
    def _shared(self) -> int:
        return self.weights + self.gradients + self.optimizer

    def __str__(self) -> str:
        names = ["weights", "gradients", "optimizer", "activations"]
        names.append("logits" if self.logits >= self.layer else "layer")
        shown = {"layer": "a layer computed again"}
        parts = (f"{shown.get(name, name)} {gib(getattr(self, name))}" for name in names)
        return f"{gib(self.total)}: " + ", ".join(parts)


def memory_of(recipe: Recipe, stage: Stage, model: Any) -> Memory:
    """Memory of a stage by formula, for layers like those of Llama.

    Experts, dropout of adapters, frameworks and fragmentation are not included.

    Args:
        recipe: Settings of all stages.
        stage: Settings of this stage.
        model: The model as it is trained, with its adapters; no weight is read.
    """
    training, shape = stage.training, Shape.of(model, getattr(torch, recipe.dtype))
    tokens = training.micro_batch * stage.window
    held, trained = _bytes(model, shape.bytes), _bytes(model, shape.bytes, trained=True)
    state = 2 * (_trained(model) if "8bit" in recipe.optimizer else trained)
    copies = 2 * shape.weights if _casts(recipe) else 0
    inside, again = (tokens * each for each in _layer(recipe, stage, shape))
    logits = _logits(tokens, training.chunked_loss, shape, model)
    if training.gradient_checkpointing:
        kept = tokens * shape.layers * shape.hidden * shape.bytes
        return Memory(held + copies, trained, state, kept, logits, inside + again)
    return Memory(held + copies, trained, state, shape.layers * inside, logits)


def _layer(recipe: Recipe, stage: Stage, shape: Shape) -> tuple[int, int]:
    """Bytes of a token in one layer: what is kept for the backward pass, and gradients in it."""
    size = 2 if recipe.autocast else shape.bytes
    # Two norms keep their input in float32 and the normalized one, and matrices their input;
    # under autocast, each of the five that read a norm keeps its own copy.
    norms = 2 * (4 + shape.bytes) + (5 if _casts(recipe) else 2) * size
    # Queries, keys, values and output; shifted ones have a key for each head, and two outputs.
    # Packed documents need a mask over pairs of tokens, and a key for each head as well.
    shifted, masked = stage.training.shifted_attention is not None, _masked(recipe, stage)
    keys = shape.attention if shifted or masked else shape.keys
    attention = 2 * (shape.attention + keys) + shifted * shape.attention + masked * stage.window
    # Of scores, if they are materialised, the softmax in float32 and its cast.
    scores = shape.heads * stage.window * (4 + size % 4)
    # Gate, its activation, the other half, and their product unless the next matrix is frozen.
    inner = (4 if recipe.lora is None else 3) * shape.inner
    # An adapter computes in float32, and keeps its input if that was cast or dropped out.
    cast = recipe.lora is not None and (size < 4 or recipe.lora.dropout > 0)
    adapters = 4 * len(recipe.lora.targets) * shape.hidden if recipe.lora and cast else 0
    kept = norms * shape.hidden + (attention + inner) * size + scores + adapters
    return kept, max(2 * shape.inner * size, shape.heads * stage.window * (4 + size))


def _logits(tokens: int, chunked: bool, shape: Shape, model: Any) -> int:
    """Bytes of logits; in chunks, with the gradient of the head, and its sum over chunks."""
    whole = tokens * shape.vocabulary * _LOGIT_BYTES
    if not chunked:
        return whole
    row = shape.hidden * shape.bytes
    chunk = min(row * max(shape.vocabulary, tokens), _CHUNKED_BYTES * tokens * shape.vocabulary)
    learns = any(weight.requires_grad for weight in model.get_output_embeddings().parameters())
    return min(whole, chunk + (2 * row * shape.vocabulary if learns else 0))


def _masked(recipe: Recipe, stage: Stage) -> bool:
    return stage.data.packed and recipe.attention == "sdpa"


def _casts(recipe: Recipe) -> bool:
    """Whether weights are copied to compute with them."""
    return recipe.autocast and recipe.dtype == "float32"


def _bytes(model: Any, size: int, *, trained: bool = False) -> int:
    """Of weights, all or those that are trained, which are in float32."""
    return sum(
        weight.numel() * (4 if weight.requires_grad else size)
        for weight in model.parameters()
        if weight.requires_grad or not trained
    )


def _trained(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def plan(recipe: Recipe) -> str:
    """Check a recipe against its model and its texts, and say what it would do.

    No weight is read.

    Raises:
        FileNotFoundError: A model or a text is not there.
        ValueError: The recipe does not fit the model, or a text has no row.
    """
    check_reporters(recipe.report_to, installed=False)
    folder = find(recipe.model)
    model = load_skeleton(folder, trust_remote_code=recipe.trust_remote_code)
    model.tie_weights()  # a skeleton loses it
    tokenizer = load_tokenizer(folder, trust_remote_code=recipe.trust_remote_code)
    with suppress(ImportError):  # may be installed where it is trained
        model.set_attn_implementation(recipe.attention)
    weights = sum(weight.numel() for weight in model.parameters())
    if recipe.lora is not None:
        model = with_adapters(model, recipe.lora, checkpointed=False)
    lines = [f"model     {recipe.model}: {weights:,} weights, {_trained(model):,} of them trained"]
    for number, stage in enumerate(recipe.stages, start=1):
        arguments_of(recipe, stage, Path(f"stage-{number}"))  # its numbers are checked
        with changed(model, stage, recipe.trained_length, recipe.autocast) as handle:
            cutter = Cutter.of(stage.data, tokenizer, model, recipe.model)
            lines += _stage(number, stage, handle, cutter)
        memory = memory_of(recipe, stage, model)
        lines += [f"  memory    {memory}", f"  sharded   {gib(memory.on_each(_DEVICES))} {_SHARED}"]
    return "\n".join(lines)


_SHARED = f"on each of {_DEVICES} devices that share weights, gradients and optimizer (FSDP)"


def _stage(number: int, stage: Stage, handle: Patch, cutter: Cutter) -> list[str]:
    collator_of(stage, handle, 0)  # its numbers are checked
    for source in stage.data.sources:
        next(cutter.rows(source))
    training, length = stage.training, stage.window
    tokens = training.batch * length
    reach = format_size(handle.target_length)
    drawn = f", at positions drawn by {stage.positions.sampler}" if stage.positions else ""
    texts = ", ".join(source.text for source in stage.data.sources)
    return [
        f"stage {number}   {stage.strategy}: trained at {format_size(handle.rope.trained_length)}"
        f", for {reach}",
        f"  reads     {format_size(length)} tokens at once{drawn}, from {texts}",
        f"  steps     {training.steps} of {training.batch} rows, {tokens:,} tokens; "
        f"{training.steps * tokens:,} tokens in all",
    ]
