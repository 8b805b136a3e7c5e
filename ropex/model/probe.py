"""A live model run on a few made-up tokens, as many as reach every branch of its attention.

Windows, chunks and selections of keys do nothing on a text that is shorter than they are.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import Tensor, nn

from ropex.model.modes import in_mode

FEWEST = 8
# On a model of eight billion parameters some hundred tokens take a second on a GPU and ten on a
# processor, and most windows, chunks and selections below that are reached.
MOST = 512
_PROBE = 32  # of tokens that a training is tried on
_ROWS = 8  # of logits that are kept
_CYCLE = 7  # made-up tokens are 1 to 7, which every vocabulary has
_SPAN = re.compile(r"window|chunk|index_topk|budget|local_attention|block_size|compress_rate")
_NO_SPAN = re.compile(r"layers|pattern|feed_forward|dropout|probs")


def probe_size(*configs: Any) -> int:
    """Tokens that reach beyond every span of some configs, of those up to `MOST`."""
    spans = [span for config in configs for span in spans_of(config).values()]
    return FEWEST + max((span for span in spans if span <= MOST), default=0)


def unreached(*configs: Any) -> tuple[str, ...]:
    """Spans that `probe_size` leaves out, as `sliding_window 4096`."""
    found = (item for config in configs for item in spans_of(config).items())
    return tuple(dict.fromkeys(f"{name} {span}" for name, span in found if span > MOST))


def spans_of(config: Any) -> dict[str, int]:
    """Settings of a config that say after how many tokens attention does something different."""
    spans: dict[str, int] = {}
    for name, value in vars(config).items():
        if not _SPAN.search(name) or _NO_SPAN.search(name):
            continue
        parts = value.values() if isinstance(value, dict) else (value,)
        counts = [part for part in parts if isinstance(part, int) and not isinstance(part, bool)]
        if counts and max(counts) > 0:
            spans[name] = max(counts)
    if {"index_topk_blocks", "index_block_size"} <= spans.keys():
        spans["index_topk_blocks"] *= spans["index_block_size"]
    return spans


def probe_at(length: int, count: int = FEWEST) -> dict[str, Tensor]:
    """Positions, from the first of `length` to the last, for `count` tokens."""
    places = torch.linspace(0, length - 1, count).long()[None]
    # Without a mask, jumps mean packed sequences.
    return {"position_ids": places, "attention_mask": torch.ones_like(places)}


@torch.no_grad()
def probe_logits(
    model: nn.Module, given: dict[str, Tensor], count: int = FEWEST, last: int = FEWEST
) -> Tensor:
    """Logits, `(8, vocabulary)` or fewer, float64, of some of the made-up tokens, first and last.

    Args:
        model: The model.
        given: What it is given besides them.
        count: How many tokens.
        last: The last token.
    """
    device = _device(model)
    ids = torch.arange(count, device=device)[None] % _CYCLE + 1
    ids[:, -1] = last
    inputs: dict[str, Any] = {name: value.to(device) for name, value in given.items()}
    run = _with_positions(model) if "position_ids" in inputs else model
    taken = inspect.signature(run.forward).parameters
    if "decoder_input_ids" in taken:
        of_decoder = {f"decoder_{name}": value for name, value in inputs.items()}
        inputs |= {name: value for name, value in of_decoder.items() if name in taken}
        inputs["decoder_input_ids"] = ids
    if _takes_cache(run):
        inputs["use_cache"] = False
    with in_mode(model, training=False):
        output = run(input_ids=ids, **inputs)
    logits: Tensor | None = getattr(output, "logits", None)  # a loss may come before them
    if logits is None:
        logits = output[0]  # hidden states, of a model without a head
    rows = torch.linspace(0, logits.shape[1] - 1, min(_ROWS, logits.shape[1])).long()
    return logits[0, rows.to(logits.device)].double().cpu()


def has_weights(model: nn.Module) -> bool:
    """Whether the model can run: its weights are there, or accelerate fetches them (offloading)."""
    there = any(not parameter.is_meta for parameter in model.parameters())
    return there or any(hasattr(module, "_hf_hook") for module in model.modules())


def _device(model: nn.Module) -> Any:
    """The device that inputs go to."""
    hooks = [getattr(module, "_hf_hook", None) for module in model.modules()]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return next((d for d in devices if d is not None), next(model.parameters()).device)


def _with_positions(model: Any) -> Any:
    """The model, or the one below its head if the head drops positions (Falcon's for tokens)."""
    from transformers import PreTrainedModel

    takes = "position_ids" in inspect.signature(model.forward).parameters
    return model if takes or not isinstance(model, PreTrainedModel) else model.base_model


def _takes_cache(model: nn.Module) -> bool:
    """Whether a model, or its wrapper, takes `use_cache`; encoders do not."""
    taken = inspect.signature(model.forward).parameters
    return "use_cache" in taken or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def probe_ids(model: Any) -> Tensor:
    """Token ids, `(1, tokens)`, where the input embedding of a model of transformers is."""
    weight = model.get_input_embeddings().weight
    return torch.arange(min(_PROBE, weight.shape[0]), device=weight.device)[None]
