"""Perplexity by length during training: gains at long lengths, losses at short ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ropex.texts.tokens import first_token, require_embedded
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus, load_corpus
from ropex_eval.training.by_length import ByLength, read_lines, write_lines
from ropex_eval.training.in_training import bare, local_nll, trained_length, undisturbed

FILE = "perplexity-by-length.jsonl"
"""In the output folder of a training run: one line for each measurement."""


class PerplexityByLength(TrainerCallback):
    """Measures local perplexity at several lengths during training, and how it changes.

    The numbers are those of `ropex eval`, definition `local`, under the strategy that the model is
    patched with. They are measured at the start, every few steps and at the end, printed in one
    line, logged, and kept in `perplexity-by-length.jsonl` in the output folder. A resumed run
    continues that file and keeps its start; a new run starts a new file.

    In transformers, callbacks do not know each other, and those that report to TensorBoard or
    Weights & Biases run before those of `callbacks=[...]`, so they miss what is added to a log.
    `attach` connects them; without it, numbers go only into the log history and the file.

    The model keeps its modes, gradients, rotary tables and random state, so losses and weights are
    the same with and without this. Every process reads every excerpt, through the whole model's
    forward pass where its weights are split (FSDP). With `bf16` or `fp16` in the arguments it
    computes in that dtype, as the training does; otherwise in the dtype of the weights, or under
    the surrounding autocast. In your own loop, call `log(watch(model))`.

    Args:
        tokenizer: Of the model.
        data: A source for `texts.sources.read_texts`, or a corpus, of which all excerpts are read.
        lengths: Tokens of context, BOS included.
        trained_length: Tokens that the model was trained at before, where its config does not say.
        excerpts: Number of excerpts from a source, each of the longest length.
        every: Steps between measurements; None measures when a checkpoint is saved.
        targets: Tokens that are scored; 64, or half of a shortest length below 128, if None.
        batch: Excerpts of the longest length that are read side by side.
        bos: The token in front: `auto` for the tokenizer's own, `none`, or a token.
        tell: Called with each line, on the first process.

    Attributes:
        start: The measurement that changes refer to; None before the first one.

    Raises:
        ValueError: The arguments do not fit together.

    Example:
        >>> PerplexityByLength(tokenizer, lengths=(256, 1024), every=100).attach(trainer)
        >>> trainer.train()
    """

    def __init__(
        self, tokenizer: Any, data: str | Corpus = "stdlib",
        lengths: Sequence[int] = (256, 512, 1024, 2048), trained_length: int | None = None,
        excerpts: int = 8, every: int | None = None, targets: int | None = None, batch: int = 1,
        bos: str = "auto", tell: Callable[[str], None] = tqdm.write,
    ) -> None:  # fmt: skip
        for name, value in (("excerpts", excerpts), ("every", every), ("batch", batch)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        excerpt = data.tokens + data.text.bos if isinstance(data, Corpus) else None
        self.protocol = Protocol.of(lengths, targets, ("local",), excerpt=excerpt)
        self.tokenizer, self.data, self.trained_length = tokenizer, data, trained_length
        self.excerpts, self.every, self.batch, self.bos = excerpts, every, batch, bos
        self.tell = tell
        self.start: ByLength | None = None
        self._lines: list[dict[str, Any]] = []
        self._last: int | None = None  # the step of the last measurement
        self._others: Any = None  # the handler that calls all callbacks

    @cached_property
    def corpus(self) -> Corpus:
        """The excerpts, read when they are first needed; see `load_corpus`."""
        if isinstance(self.data, Corpus):
            return self.data
        name = getattr(self.tokenizer, "name_or_path", "") or "this model"
        bos = first_token(self.tokenizer, self.bos, name)
        return load_corpus(self.data, self.tokenizer, bos, self.protocol.excerpt, self.excerpts)

    def attach(self, trainer: Any) -> None:
        """Add this to the callbacks of a `transformers.Trainer`, and let it log through them."""
        self._others = trainer.callback_handler
        if self not in self._others.callbacks:
            trainer.add_callback(self)

    def measure(self, model: Any) -> ByLength:
        """Measure a model as it is now, wrapped for training or not.

        Args:
            model: A causal language model with rotary embeddings, patched or not. If its weights
                are split over processes, all of them must call this.

        Raises:
            UnsupportedModel: It has no rotary embedding that ropex knows.
            ValueError: The text is too short for the lengths, or has no first token.
        """
        model, corpus, protocol = bare(model), self.corpus, self.protocol
        require_embedded([corpus.largest_id], model, "this model")
        with undisturbed(model) as found:
            nll = local_nll(model, found, corpus, protocol, self.batch, self.tell)
            trained = self.trained_length or trained_length(found)
        means = tuple(tuple(nll[length]) for length in protocol.lengths)
        clusters, targets = tuple(corpus.clusters), protocol.targets
        return ByLength(protocol.lengths, means, clusters, targets, corpus.sha256, trained)

    def __call__(self, model: Any) -> dict[str, float]:
        """Measure a model and return what to log; changes are since `start`, or the first call."""
        now = self.measure(model)
        self.start = self.start or now
        return now.numbers(self.start)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step; a resumed run keeps its start."""
        path = Path(args.output_dir) / FILE
        self._lines = read_lines(path, state.global_step) if state.global_step else []
        now = self.measured(args, kwargs["model"])
        self.start = _start(self._lines[0], now, path) if self._lines else now
        self._keep(args, state, control, now)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure every few steps, if `every` is given."""
        if self.every and state.global_step % self.every == 0:
            self._watch(args, state, control, kwargs["model"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what was saved, unless `every` is given."""
        if not self.every:
            self._watch(args, state, control, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after the last step, before loggers close."""
        if control.should_training_stop:
            self._watch(args, state, control, kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if the last epoch ended early, unless the best checkpoint was loaded."""
        if not args.load_best_model_at_end:
            self._watch(args, state, control, kwargs["model"])

    def _watch(self, args: Any, state: Any, control: Any, model: Any) -> None:
        if state.global_step != self._last:
            self._keep(args, state, control, self.measured(args, model))

    def measured(self, args: Any, model: Any) -> ByLength:
        """Measure a model in the dtype that training with these arguments computes in."""
        dtype = torch.bfloat16 if args.bf16 else torch.float16
        with torch.autocast(args.device.type, dtype, enabled=args.bf16 or args.fp16):
            return self.measure(model)

    def _keep(self, args: Any, state: Any, control: Any, now: ByLength) -> None:
        """Write, print and log, unless a resumed run has this step in its file already."""
        assert self.start is not None  # on_train_begin
        self._last = step = state.global_step
        if any(line["step"] == step for line in self._lines):
            return
        self._lines.append(now.line(step, self.start))
        if state.is_world_process_zero:
            write_lines(Path(args.output_dir) / FILE, self._lines)
            self.tell(now.told(step, self.start))
        self._log(args, state, control, now.numbers(self.start))

    def _log(self, args: Any, state: Any, control: Any, logs: dict[str, float]) -> None:
        """Log as `Trainer.log` does; subclasses add values there that are gathered for the loss."""
        logs = logs if state.epoch is None else {**logs, "epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        if self._others is not None:
            wanted = control.should_log
            self._others.on_log(args, state, control, logs)
            control.should_log = wanted  # the loss is still to come
        elif args.report_to and len(self._lines) == 1:
            warnings.warn(
                f"{', '.join(args.report_to)} will not see perplexity by length; instead of giving "
                "it as callbacks=[...], call PerplexityByLength(...).attach(trainer)",
                stacklevel=2,
            )


def _start(line: dict[str, Any], now: ByLength, path: Path) -> ByLength:
    """The measurement of the first line, which must be on the same tokens as `now`."""
    start = ByLength.of_line(line)
    if start.tokens != now.tokens:
        raise ValueError(
            f"{path} was measured on a different text, or at different lengths or targets; give "
            "the same, or move it away to start again"
        )
    return start
