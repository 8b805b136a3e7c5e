"""A checkpoint that is measured in a moment, texts for it, and brute force to compare with."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import ropex_eval.run
from ropex_eval.corpus import Corpus, load_corpus
from ropex_eval.measure import measure
from ropex_eval.table import NllTable

TRAINED = 32
LENGTHS = (8, 24, 48, 96)  # two within the trained length, two beyond
BOS = "<s>"

STATIC = (
    "none",
    "linear:4",
    "ntk:4",
    "ntk_by_parts:4",
    "yarn:4",
    "llama3:4",
    "logn",
    "linear:2+ntk:2",
    "dynamic:length=128",
)
BY_LENGTH = ("dynamic", "dynamic:4", "dynamic:2+logn")

_WORDS = ["the", "a", "cat", "ran", "on", "under", "big", "red", "house", "and", "it", "there,"]


def tiny_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte; like Llama's, it puts BOS in front unless it is told not to."""
    vocabulary = [BOS, "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not bos:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token="</s>")


def tiny_causal(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A random model with two layers, whose logits are large and depend on positions."""
    settings = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": TRAINED,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(family, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(20.0 if "embed" in name or "head" in name else 8.0)
    return model.eval()


def save_checkpoint(folder: Path, *, bos: bool = True, seed: int = 0) -> Path:
    """Write the tiny Llama and its tokenizer."""
    tiny_causal(seed=seed).save_pretrained(folder)
    tiny_tokenizer(bos=bos).save_pretrained(folder)
    return folder


def words(tokens: int, seed: int = 0) -> str:
    """Text of `tokens` letters, hence of as many tokens."""
    chosen = random.Random(seed).choices(_WORDS, k=tokens)
    return " ".join(chosen)[:tokens]


def corpus_of(folder: Path, length: int, windows: int = 3, *, bos: int | None = 0) -> Corpus:
    """Windows out of two documents that are written into `folder`."""
    folder.mkdir(exist_ok=True)
    for name, seed in (("a.txt", 1), ("b.txt", 2)):
        (folder / name).write_text(words(2 * length, seed), encoding="utf-8")
    return load_corpus(str(folder), tiny_tokenizer(), bos, length, windows)


@torch.no_grad()
def plain_nll(model: Any, ids: Tensor) -> Tensor:
    """NLL of tokens 1, 2, ... by the definition: all logits at once, float64."""
    logits = model(ids[None]).logits[0].double()
    rows = [logits[p - 1].logsumexp(0) - logits[p - 1, ids[p]] for p in range(1, len(ids))]
    return torch.stack(rows)


def watch_measuring(
    monkeypatch: pytest.MonkeyPatch, broken: Mapping[str, BaseException] | None = None
) -> list[str]:
    """A list that each strategy is added to that a run measures from now on.

    Args:
        monkeypatch: Ends the watch.
        broken: Strategies that raise instead.
    """
    seen: list[str] = []

    def watched(scorer: Any, corpus: Any, protocol: Any, strategy: Any, **others: Any) -> NllTable:
        if error := (broken or {}).get(str(strategy)):
            raise error
        seen.append(str(strategy))
        return measure(scorer, corpus, protocol, strategy, **others)

    monkeypatch.setattr(ropex_eval.run, "measure", watched)
    return seen


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes; None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def strict_json(text: str) -> Any:
    """What any JSON parser reads; Python's own would accept NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
