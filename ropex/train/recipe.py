"""What a recipe says: the model, the strategy, the texts, the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ropex.train.schema import Size


@dataclass(frozen=True)
class Source:
    """Texts of one kind.

    Attributes:
        text: As `ropex.texts.read_texts` takes it; of a data set, the split `train` unless given.
        share: Of the rows, against the shares of other sources.
        layout: `split` cuts each document into rows, and leaves out what is shorter than one;
            `join` puts documents one after the other and cuts that, as most papers do; `pack` puts
            several into a row, with positions of their own, so that none sees another.
        longest: Tokens of a document that are read at most in one piece, where they are packed.
    """

    text: str
    share: float = 1.0
    layout: Literal["split", "join", "pack"] = "split"
    longest: Size | None = None

    def __post_init__(self) -> None:
        _check(0 < self.share < math.inf, f"share is {self.share}; it must be above 0")
        if self.longest is not None:
            _check(self.layout == "pack", "longest is for the layout pack alone")
            _check(self.longest > 1, f"longest is {self.longest}; a piece has 2 tokens at least")


@dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        length: Tokens of a row, the token in front included.
        sources: The texts; rows are drawn from them by their shares.
        streaming: Read texts as training goes, in their own order, and keep none on disk.
        bos: `auto` for the tokenizer's, `none`, or a token, which starts each piece.
    """

    length: Size
    sources: tuple[Source, ...]
    streaming: bool = False
    bos: str = "auto"

    def __post_init__(self) -> None:
        _check(self.length > 1, f"length is {self.length}; a row has 2 tokens at least")
        _check(bool(self.sources), "sources is empty; name a text")

    @property
    def packed(self) -> bool:
        """Whether rows may hold several documents."""
        return any(source.layout == "pack" for source in self.sources)


@dataclass(frozen=True)
class Positions:
    """Positions that are drawn, so that a short row stands for a long text.

    Attributes:
        sampler: `pose`, `cream` or `random`.
        window: Tokens that the model reads at once.
        target: Positions to cover; those that the strategy is meant to reach unless given.
    """

    sampler: Literal["pose", "cream", "random"]
    window: Size
    target: Size | None = None


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    Attributes:
        steps: Updates of the weights.
        batch: Rows of an update, over all processes.
        micro_batch: Rows that one process reads at a time.
        learning_rate: After the warmup.
        schedule: Of the learning rate afterwards.
        warmup: Steps in which it rises.
        weight_decay: Of AdamW.
        beta2: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        gradient_checkpointing: Compute activations again instead of keeping them.
        chunked_loss: Compute logits a few rows at a time.
        shifted_attention: LongLoRA's, in so many groups; None for full attention.
        save_every: Steps between checkpoints.
        keep: Checkpoints that are kept, of each stage; 2 or more, as one may be half written.
        log_every: Steps between lines of the log.
    """

    steps: int
    batch: int
    micro_batch: int = 1
    learning_rate: float = 2e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = 20
    weight_decay: float = 0.0
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = True
    chunked_loss: bool = True
    shifted_attention: int | None = None
    save_every: int = 100
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch", "save_every", "log_every"):
            value = getattr(self, name)
            _check(value > 0, f"{name} is {value}; it must be above 0")
        _check(self.keep > 1, f"keep is {self.keep}; it must be at least 2")
        _check(0 <= self.warmup <= self.steps, _SHORT.format(self.warmup, self.steps))
        _check(
            0 < self.learning_rate < 1, f"learning_rate is {self.learning_rate}; it must be above 0"
        )
        _check(self.batch % self.micro_batch == 0, _UNEVEN.format(self.batch, self.micro_batch))


_SHORT = "warmup is {}, and there are only {} steps; set training.warmup"
_UNEVEN = "batch is {}, which is no multiple of micro_batch, {}"


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters instead of all weights.

    Attributes:
        rank: Of an adapter.
        alpha: Its scale, times the rank.
        dropout: Of its input.
        targets: Matrices that have one.
        also: Parts that are trained in full: `embeddings` and `norms`, as LongLoRA found it needs.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    also: tuple[Literal["embeddings", "norms"], ...] = ("embeddings", "norms")


@dataclass(frozen=True)
class Evaluate:
    """Perplexity by length, measured before, during and after.

    Attributes:
        data: As for `ropex eval`.
        lengths: Tokens.
        excerpts: How many are read.
        every: Steps between; None for the start and the end alone.
    """

    lengths: tuple[Size, ...]
    data: str = "stdlib"
    excerpts: int = 16
    every: int | None = None


@dataclass(frozen=True)
class Stage:
    """One strategy, trained for some steps, from the weights that the stage before left.

    Attributes:
        strategy: Its text; it starts from the model as it was before the first stage.
        data: What is read.
        training: How long and how fast.
        positions: Positions that are drawn; None for those of the rows.
    """

    strategy: str
    data: Data
    training: Training
    positions: Positions | None = None

    def __post_init__(self) -> None:
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
        evaluate: What is measured meanwhile.
        trained_length: Tokens that the model was trained at, where its config does not say.
        dtype: Of the weights; `bfloat16` for those that adapters stand beside, since a weight that
            is trained loses steps below a 256th of itself to rounding.
        autocast: Compute in bfloat16, whatever the weights are.
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
    trained_length: Size | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    autocast: bool = False
    attention: str = "sdpa"
    optimizer: str = "adamw_torch"
    seed: int = 0
    report_to: tuple[str, ...] = field(default=())
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _check(bool(self.stages), "stages is empty")
        _check(self.dtype == "float32" or (self.lora is not None and self.autocast), _ROUNDED)


_ROUNDED = (
    "dtype is bfloat16, in which a trained weight loses small steps to rounding; give dtype: "
    "float32 and autocast: true, or, with lora, whose adapters stay float32, autocast: true"
)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
