"""What the benchmarks share: a model, a text, and the two ways to score many lengths of it.

The plain way is one forward for every length, with the logits of all its tokens at once and the
loss in float32. ropex's way is what `ropex eval` runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

import ropex
from ropex_eval.corpus import Corpus, Window
from ropex_eval.measure import Protocol, measure
from ropex_eval.nll import Scorer
from ropex_eval.table import NllTable, mean_nll


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
        "llama",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // head_dim),
        num_key_value_heads=max(1, hidden // head_dim),
        head_dim=head_dim,
        max_position_embeddings=4096,
    )
    auto: Any = AutoModelForCausalLM
    return auto.from_config(config).to(dtype).eval()


def random_text(length: int, vocabulary: int) -> Tensor:
    """Token ids, `(length,)`; what they say changes neither time nor memory."""
    return torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(0))


def plain_nll(model: Any, ids: Tensor) -> Tensor:
    """NLL of all tokens but the first, from all logits at once."""
    with torch.no_grad():
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        return functional.cross_entropy(logits.float(), ids[1:], reduction="none")


def plain_table(model: Any, ids: Tensor, protocol: Protocol) -> NllTable:
    """The plain way: a forward of the first tokens of every length, and for `fixed` of the last."""
    prefix = {length: plain_nll(model, ids[:length])[None] for length in protocol.lengths}
    fixed = protocol.lengths if "fixed" in protocol.metrics else ()
    last = {n: plain_nll(model, ids[-n:])[None, -protocol.targets :] for n in fixed}
    return NllTable(prefix, last)


def ropex_table(scorer: Scorer, ids: Tensor, protocol: Protocol) -> NllTable:
    """ropex's way, on the unscaled model, and every definition at every length."""
    corpus = Corpus("random", (Window("random", 0, ids),), bos=None, too_short=0)
    table = measure(scorer, corpus, protocol, ropex.strategy("none"))
    for metric in protocol.metrics:
        for length in protocol.lengths:
            mean_nll(table, metric, length, protocol.targets)
    return table
