"""What a recipe says: the model, the strategy, the texts, the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from ropex.train.recipes.schema import Bounds, Size, check_numbers

Count: TypeAlias = Annotated[int, Bounds(least=1, most=10_000_000)]
Tokens: TypeAlias = Annotated[Size, Bounds(least=2, most=2**31 - 1)]
_ROWS = 100_000_000  # that a run can put in order


@dataclass(frozen=True)
class Source:
    """A source of texts.

    Attributes:
        text: As for `texts.sources.read_texts`; the split of a data set defaults to `train`.
        share: Of the rows, relative to the shares of other sources.
        layout: `split` cuts each document into rows, and drops documents shorter than a row;
            `join` concatenates documents and cuts the result, as most papers do; `pack` puts
            several into a row, with separate positions, so that they do not see each other.
        longest: Largest piece of a packed document, in tokens.
    """

    text: str
    share: Annotated[float, Bounds(above=0)] = 1.0
    layout: Literal["split", "join", "pack"] = "split"
    longest: Tokens | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.longest is not None:
            _check(self.layout == "pack", "longest is only for layout: pack")


@dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        length: Tokens of a row, the token in front included.
        sources: The texts; rows are drawn from them by their shares.
        streaming: Read texts while training, in their own order, and keep none on disk.
        bos: The token in front of each piece: `auto` for the tokenizer's, `none`, or a token.
    """

    length: Tokens
    sources: tuple[Source, ...]
    streaming: bool = False
    bos: str = "auto"

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(bool(self.sources), "sources is empty; name a text")

    @property
    def packed(self) -> bool:
        """Whether rows may hold several documents."""
        return any(source.layout == "pack" for source in self.sources)


@dataclass(frozen=True)
class Positions:
    """Drawn positions, so that a short row stands for a long text.

    Attributes:
        sampler: `pose`, `cream` or `random`.
        window: Tokens that the model reads at once.
        target: Positions to cover; by default the target length of the strategy.
    """

    sampler: Literal["pose", "cream", "random"]
    window: Tokens
    target: Tokens | None = None

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        steps: Updates of the weights.
        batch: Rows of an update, over all processes.
        micro_batch: Rows that one process reads at a time.
        learning_rate: After the warmup.
        schedule: Of the learning rate after the warmup.
        warmup: Steps in which the learning rate rises.
        weight_decay: Of AdamW.
        beta2: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm; 0 to leave them.
        gradient_checkpointing: Recompute activations instead of keeping them.
        chunked_loss: Compute logits a few rows at a time.
        shifted_attention: Groups of LongLoRA's attention; None for full attention.
        save_every: Steps between checkpoints.
        keep: Checkpoints kept for each stage; 2 or more, as one may be half written.
        log_every: Steps between lines of the log.
    """

    steps: Count
    batch: Count
    micro_batch: Count = 1
    learning_rate: Annotated[float, Bounds(above=0, below=1)] = 2e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[int, Bounds(least=0)] = 20
    weight_decay: Annotated[float, Bounds(least=0)] = 0.0
    beta2: Annotated[float, Bounds(least=0, below=1)] = 0.95
    max_grad_norm: Annotated[float, Bounds(least=0)] = 1.0
    gradient_checkpointing: bool = True
    chunked_loss: bool = True
    shifted_attention: Annotated[int, Bounds(least=2)] | None = None
    save_every: Count = 100
    keep: Annotated[int, Bounds(least=2, most=10_000_000)] = 2
    log_every: Count = 10

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(self.warmup <= self.steps, _SHORT.format(self.warmup, self.steps))
        _check(self.batch % self.micro_batch == 0, _UNEVEN.format(self.batch, self.micro_batch))
        rows = self.steps * self.batch
        _check(rows <= _ROWS, f"steps of {rows:,} rows in all are more than {_ROWS:,}; give fewer")
        decay = self.learning_rate * self.weight_decay
        _check(decay < 1, f"weight_decay is {self.weight_decay}; {_DECAY}")


_DECAY = "times learning_rate it must be below 1, or a step turns weights around"
_SHORT = "warmup is {}, and there are only {} steps; set training.warmup"
_UNEVEN = "batch is {}, which is no multiple of micro_batch, {}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of all weights.

    Attributes:
        rank: Of an adapter.
        alpha: Its scale, times the rank.
        dropout: Of its input.
        targets: Matrices with an adapter.
        also: Parts that are trained in full: `embeddings` and `norms`, which LongLoRA needs.
    """

    rank: Annotated[int, Bounds(least=1, most=65_536)] = 8
    alpha: Annotated[float, Bounds(above=0)] = 16.0
    dropout: Annotated[float, Bounds(least=0, below=1)] = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    also: tuple[Literal["embeddings", "norms"], ...] = ("embeddings", "norms")

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(bool(self.targets), "targets is empty; name a matrix, such as q_proj")


@dataclass(frozen=True)
class Evaluate:
    """Perplexity by length, measured before, during and after.

    Attributes:
        data: As for `ropex eval`.
        lengths: Tokens.
        excerpts: How many are read.
        every: Steps between measurements; None for the start and the end only.
    """

    lengths: tuple[Tokens, ...]
    data: str = "stdlib"
    excerpts: Count = 16
    every: Count | None = None

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(bool(self.lengths), "lengths is empty; give some, as in [1k, 4k]")


@dataclass(frozen=True)
class Stage:
    """One strategy, trained for some steps, from the weights that the stage before left.

    Attributes:
        strategy: Its text; it applies to the model as it was before the first stage.
        data: What is read.
        training: How long and how fast.
        positions: Positions that are drawn; None for those of the rows.
    """

    strategy: str
    data: Data
    training: Training
    positions: Positions | None = None

    def __post_init__(self) -> None:
        groups = self.training.shifted_attention
        _check(
            groups is None or groups <= self.window,
            f"training.shifted_attention is {groups}, and {self.window} tokens are read at once",
        )
        if self.positions is None:
            return
        _check(
            not self.data.packed, "positions are drawn for rows of one document; not packed ones"
        )
        window = self.positions.window
        _check(
            window <= self.data.length,
            f"positions.window is {window}, and a row has {self.data.length} tokens",
        )

    @property
    def window(self) -> int:
        """Tokens that the model reads at once."""
        return self.data.length if self.positions is None else self.positions.window


@dataclass(frozen=True)
class Recipe:
    """A run.

    Attributes:
        model: A folder, a hub id, or `demo`.
        stages: One after the other.
        lora: Adapters; None to train all weights.
        evaluate: What is measured during training.
        trained_length: Tokens that the model was trained at, where its config does not say.
        dtype: Of the weights; `bfloat16` only for frozen weights beside adapters, since a trained
            weight loses steps below 1/256 of itself to rounding.
        autocast: Compute in bfloat16, whatever the dtype.
        attention: Of transformers, such as `sdpa` or `flash_attention_2`.
        optimizer: As transformers calls it.
        seed: Of the order of rows, of drawn positions and of dropout.
        report_to: Loggers of transformers, such as `wandb`.
        trust_remote_code: Run code that comes with the checkpoint.
    """

    model: str
    stages: tuple[Stage, ...]
    lora: Lora | None = None
    evaluate: Evaluate | None = None
    trained_length: Annotated[Size, Bounds(least=1, most=2**31 - 1)] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    attention: str = "sdpa"
    optimizer: str = "adamw_torch"
    seed: Annotated[int, Bounds(least=0, most=2**32 - 1)] = 0
    report_to: tuple[str, ...] = field(default=())
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        _check(bool(self.stages), "stages is empty")
        _check(self.dtype == "float32" or (self.lora is not None and self.autocast), _ROUNDED)


_ROUNDED = (
    "dtype is bfloat16, in which a trained weight loses small steps to rounding; give dtype: "
    "float32 and autocast: true, or, with lora, whose adapters stay float32, autocast: true"
)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
