"""Shared by the benchmarks: a model, a text, and the two ways to score many lengths of it.

The plain way is one forward pass for every length, with the logits of all its tokens at once and
the loss in float32. ropex's way is what `ropex eval` runs.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

import ropex
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.reader import Reader
from ropex_eval.scores.definitions import DEFINITIONS
from ropex_eval.scores.protocol import Protocol
from ropex_eval.study.corpus import Corpus, Excerpt
from ropex_eval.study.passes import passes
from ropex_eval.study.store import Store
from ropex_eval.study.table import Keys, Table

Numbers = dict[tuple[str, int], Tensor]
"""Definition and length to the NLL of each token that it scores."""


def random_llama(
    layers: int,
    hidden: int,
    vocabulary: int,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
) -> Any:
    """A Llama with random weights, built from its config."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers, num_attention_heads=max(1, hidden // head_dim),
        num_key_value_heads=max(1, hidden // head_dim), head_dim=head_dim,
        max_position_embeddings=4096,
    )  # fmt: skip
    auto: Any = AutoModelForCausalLM
    return auto.from_config(config).to(dtype).eval()


def random_text(length: int, vocabulary: int) -> Tensor:
    """Token ids, `(length,)`; their values affect neither time nor memory."""
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))


def plain_nll(model: Any, ids: Tensor) -> Tensor:
    """NLL of all tokens but the first, from all logits at once."""
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        return functional.cross_entropy(logits.float(), ids[1:], reduction="none")


def plain_table(model: Any, ids: Tensor, protocol: Protocol) -> Numbers:
    """The plain way: a forward of the first tokens of every length, and for `fixed` of the last."""
    found: Numbers = {}
    for length in protocol.lengths:
        scores = plain_nll(model, ids[:length])
        found["prefix", length], found["local", length] = scores, scores[-protocol.targets :]
        if "fixed" in protocol.definitions:
            found["fixed", length] = plain_nll(model, ids[-length:])[-protocol.targets :]
    return {key: scores for key, scores in found.items() if key[0] in protocol.definitions}


def ropex_table(scorer: Scorer, ids: Tensor, protocol: Protocol) -> Numbers:
    """The way of ropex, on the unscaled model, with every definition at every length."""
    corpus = Corpus("random", (Excerpt("random", 0, ids),), bos=None, too_short=0)
    strategy, model = ropex.strategy("none"), scorer.model
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        table = Table(corpus, Keys(((1, None, "random"),)), store)
        reader = Reader(scorer)
        with ropex.patch(model, strategy):
            for each in passes(corpus, protocol, strategy, ropex.rope_of(model)):
                texts = [each.ids(corpus)]
                store.put("random", [each], texts, reader.read([each], texts))
        return {
            (name, length): table.nll(0, span).clone()
            for name in protocol.definitions
            for length in protocol.lengths
            for span in DEFINITIONS[name].spans(corpus.text, length, protocol.settings)
        }
