"""A study: a model, a text and a protocol, and what identifies the numbers that they give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

import ropex
from ropex.files.untrusted import read_json
from ropex.patching.handle import Patch
from ropex.patching.plan import Planned
from ropex.patching.record import fingerprint as hash_of_plans
from ropex.rope import Rope
from ropex.sizes import count, format_size
from ropex.strategies.base import Strategy
from ropex.strategies.frozen import Frozen
from ropex.texts.tokens import require_embedded
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus
from ropex_eval.study.passes import length_classes, shared_by, wanted
from ropex_eval.study.table import Keys


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that decides the numbers of a run.

    Attributes:
        model_id: What the user called the model.
        folder: Its checkpoint; None for a live model, whose weights are those of `skeleton`.
        skeleton: The model, with or without its weights; they are not looked at.
        load: Loads the model, in the number type and on the device that are named here.
        corpus: The excerpts.
        protocol: Lengths and definitions.
        dtype: Number type of the weights, such as `float32`.
        device: Type of the device, such as `cpu`.
        trained_length: Where the config does not say.
        lift_sliding_window: As for `ropex.patch`.
        command: The command line that asks for it.
        warnings: What a reader of the numbers should know of the text.
        tokenizer: Of the model; only what is asked in words needs it.
    """

    model_id: str
    folder: Path | None
    skeleton: Any
    load: Callable[[], Any]
    corpus: Corpus
    protocol: Protocol
    dtype: str = "float32"
    device: str = "cpu"
    trained_length: int | None = None
    lift_sliding_window: bool = False
    command: str | None = None
    warnings: tuple[str, ...] = ()
    tokenizer: Any = None

    def __post_init__(self) -> None:
        require_embedded([self.corpus.largest_id], self.skeleton, self.model_id)

    @cached_property
    def rope(self) -> Rope:
        """The rotary embedding of the model."""
        return ropex.rope_of(self.skeleton, self.trained_length)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model: of the files of a checkpoint, or of the weights of a live one."""
        if self.folder is None:
            return live_fingerprint(self.skeleton)
        return checkpoint_fingerprint(self.folder)

    @cached_property
    def about_model(self) -> dict[str, Any]:
        """The model, as results name it."""
        config = self.skeleton.config
        return {
            "id": self.model_id, "type": config.model_type, "sha256": self.fingerprint,
            "dtype": self.dtype, "device": self.device, "attention": config._attn_implementation,
            "trained_length": self.rope.trained_length, "rope_theta": self.rope.base,
            "rotary_dim": self.rope.dim, "sliding_window_lifted": self.lift_sliding_window,
        }  # fmt: skip

    def about(self, corpus: Corpus) -> dict[str, Any]:
        """What a reader needs to know to compute the same numbers on some of the excerpts."""
        return {
            "model": self.about_model,
            "data": {
                "source": corpus.source, "documents": corpus.documents,
                "too_short": corpus.too_short, "repeated": corpus.repeated,
                "excerpts": len(corpus.excerpts), "tokens": self.protocol.excerpt,
                "bos": corpus.bos, "tokens_sha256": corpus.sha256,
                "clusters": "documents" if len(corpus.documents) > 1 else "excerpts",
            },
            "versions": versions(), "command": self.command,
        }  # fmt: skip

    @property
    def summary(self) -> str:
        """What is measured, on what, in two lines."""
        corpus = self.corpus
        reasons = ((corpus.too_short, "too short"), (corpus.repeated, "repeated"))
        said = ", ".join(f"{number} {reason}" for number, reason in reasons if number)
        return (
            f"model  {self.model_id}: {self.skeleton.config.model_type}, trained at "
            f"{format_size(self.rope.trained_length)} tokens, {self.dtype} on {self.device}\n"
            f"text   {corpus.source}: {count(len(corpus.excerpts), 'excerpt')} of "
            f"{format_size(self.protocol.excerpt)} tokens from "
            f"{count(len(corpus.documents), 'document')}{f' ({said})' if said else ''}"
        )

    @contextmanager
    def patched(self, model: Any, strategy: Strategy, at: int) -> Iterator[Patch]:
        """The model under a strategy, held at what it does for sequences of `at` tokens."""
        held = strategy if strategy.class_on(self.rope) == "static" else Frozen(strategy, at)
        with ropex.patch(
            model,
            held,
            trained_length=self.trained_length,
            lift_sliding_window=self.lift_sliding_window,
        ) as patch:
            yield patch

    def keys(self, strategy: Strategy) -> Keys:
        """What decides the numbers of a strategy, apart from the text, at the lengths of passes.

        Raises:
            ValueError: The strategy does not fit the model.
        """
        spans = wanted(self.corpus.text, self.protocol)
        lengths = [*self.protocol.lengths, *(span.length for span in spans)]
        classes = length_classes(strategy, self.rope, lengths)
        ranges: dict[int, tuple[int, int | None, str]] = {}
        for length, at in sorted(classes.items()):
            first, last = shared_by(strategy, self.rope, length)
            if first not in ranges:
                ranges[first] = (first, last, self._key(strategy, at))
        return Keys(tuple(ranges.values()))

    def _key(self, strategy: Strategy, at: int) -> str:
        with self.patched(self.skeleton, strategy, at) as patch:
            plans = hash_of_plans(patch.planned, _decisive, torch.float64)
        decisive = {k: v for k, v in self.about_model.items() if k not in ("id", "trained_length")}
        content = json.dumps([decisive, versions(), plans], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def _decisive(each: Planned) -> str:
    """All that a patch changes at a site, apart from its table."""
    plan = each.plan
    scales = (plan.attention_scale, plan.softmax_scale, plan.query_scale, each.kept)
    mapped = "" if plan.positions is None else f" {plan.positions}"
    return f"{each.site} {scales}{mapped}"


def checkpoint_fingerprint(folder: Path) -> str:
    """Hash of a checkpoint: what its config says, in any order, and every byte of its weights.

    All of them, since a fine-tuning may change the middle of a file alone; reading them a second
    time costs less than loading them did.
    """
    config = read_json(folder / "config.json")
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def live_fingerprint(model: Any) -> str:
    """Hash of a live model: its config, every weight as it is now, and which adapters are on.

    Raises:
        ValueError: Some weights are not in memory, as accelerate offloads them.
    """
    config = {key: each for key, each in model.config.to_dict().items() if key != "_name_or_path"}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, part in model.named_modules():
        if hasattr(part, "disable_adapters"):  # a layer of peft
            state = (part.disable_adapters, part.active_adapters, getattr(part, "scaling", None))
            digest.update(f"{name} {state}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(f"{name} is not in memory; give the folder of the model instead of it")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
