"""What others mean by perplexity at a length, window by window, as their programs compute it.

Each function takes the tokens of one text, the length L, the stride, the number of targets and the
id of BOS (None without one), and returns windows: what the model reads, and which logits are scored
against which tokens. Nothing here comes from ropex.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Ids = list[int]
Window = tuple[Ids, list[tuple[int, int]]]
"""Input tokens; position and goal of each prediction that is scored."""

IGNORED = -100


def shifted(read: Ids, labels: Ids) -> Window:
    """What transformers scores for a forward pass with labels: logits p against label p + 1."""
    pairs = [(place - 1, labels[place]) for place in range(1, len(labels))]
    return read, [(place, goal) for place, goal in pairs if goal != IGNORED]


def front(bos: int | None) -> Ids:
    return [] if bos is None else [bos]


def prefix(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """YaRN with --truncate, LongRoPE: one pass over the first L tokens."""
    read = [*front(bos), *ids][:length]
    return [shifted(read, read)]


def local(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """The last tokens of the first L."""
    read = [*front(bos), *ids][:length]
    return [shifted(read, [IGNORED] * (length - targets) + read[length - targets :])]


def fixed(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """ReRoPE: the last tokens of the text, after as many tokens as fill a window."""
    before = length - targets - len(front(bos))
    cut = len(ids) - targets
    read = [*front(bos), *ids[cut - before : cut], *ids[cut:]]
    assert len(read) == length
    return [shifted(read, [IGNORED] * (length - targets) + ids[cut:])]


def press(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """Press et al., PI: windows move on by the stride, and every token is scored once."""
    room = length - len(front(bos))
    found, scored, begin = [], 0 if bos is not None else 1, 0
    while scored < len(ids):
        end = min(begin + room, len(ids))
        read = [*front(bos), *ids[begin:end]]
        goals = [(len(front(bos)) + token - begin - 1, ids[token]) for token in range(scored, end)]
        found.append((read, goals))
        scored, begin = end, begin + stride
    return found


def yarn(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """YaRN's compute_perplexity without --truncate (LongRoPE has it too)."""
    found, previous_end = [], 0
    max_tokenized_len = length - 1 if bos is not None else length
    for begin in range(0, len(ids), stride):
        end = min(begin + max_tokenized_len, len(ids))
        trg_len = end - previous_end
        input_ids = [*front(bos), *ids[begin:end]]
        target_ids = [IGNORED] * (len(input_ids) - trg_len) + input_ids[-trg_len:]
        found.append(shifted(input_ids, target_ids))
        previous_end = end
        if end == len(ids):
            break
    return found


def disjoint(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """Windows side by side, each with a BOS; one without anything to predict is left out."""
    room = length - len(front(bos))
    parts = [ids[begin : begin + room] for begin in range(0, len(ids), room)]
    found = [shifted([*front(bos), *part], [*front(bos), *part]) for part in parts]
    return [(read, goals) for read, goals in found if goals]


def rolling(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """lm-evaluation-harness: get_rolling_token_windows and make_disjoint_window, context_len=1."""
    assert bos is not None
    pairs, predicted, pred_len = [], 0, length - 1 + 1
    first_seq_len = min(length, len(ids))
    pairs.append(([bos, *ids[: first_seq_len - 1]], ids[:first_seq_len]))
    predicted += first_seq_len
    while predicted < len(ids):
        window_pred_len = min(len(ids) - predicted, pred_len)
        window_end = predicted + window_pred_len
        pairs.append(
            (
                ids[window_end - length - 1 : window_end - 1],
                ids[window_end - window_pred_len : window_end],
            )
        )
        predicted += window_pred_len
    found = []
    for a, b in pairs:
        context, continuation = a[: len(a) - (len(b) - 1)], b
        inp = (context + continuation)[-(length + 1) :][:-1]
        at = len(inp) - len(continuation)
        found.append((inp, [(at + n, goal) for n, goal in enumerate(continuation)]))
    return found


def llama_cpp(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """llama.cpp's perplexity: chunks of n_ctx tokens, logits n_ctx/2 to n_ctx - 2 are scored."""
    tokens, found = [*front(bos), *ids], []
    for chunk in range(len(tokens) // length):
        read = tokens[chunk * length : (chunk + 1) * length]
        batch = [*front(bos), *read[len(front(bos)) :]]  # the first token is replaced by BOS
        places = range(length // 2, length - 1)
        found.append((batch, [(place, read[place + 1]) for place in places]))
    return found


def long_lora(ids: Ids, length: int, stride: int, targets: int, bos: int | None) -> list[Window]:
    """LongLoRA's eval.py, get_as_batch: the last window is thrown away."""
    all_ix = list(range(0, len(ids) - length, stride))
    all_ix.pop()
    return [shifted(ids[i : i + length], ids[i : i + length]) for i in all_ix]


Brute = Callable[[Ids, int, int, int, "int | None"], list[Window]]

BRUTE: dict[str, tuple[Brute, str]] = {
    "prefix": (prefix, "token"), "local": (local, "token"), "fixed": (fixed, "token"),
    "sliding": (press, "token"), "window_mean": (yarn, "window"), "disjoint": (disjoint, "token"),
    "rolling": (rolling, "token"), "second_half": (llama_cpp, "token"),
    "overlapping": (long_lora, "window"), "mean_perplexity": (prefix, "text"),
}  # fmt: skip
"""The program of each definition of ropex, and what counts alike in its mean."""


@torch.no_grad()
def losses(model: Any, window: Window) -> Tensor:
    """NLL of what a window scores, from a forward pass of its own, float64."""
    read, goals = window
    logits = model(torch.tensor([read]), use_cache=False).logits[0].double()
    return torch.stack([logits[p].logsumexp(0) - logits[p, goal] for p, goal in goals])


def mean(texts: Sequence[Sequence[Tensor]], alike: str) -> float:
    """The NLL that a program reports for the losses of each window of each text."""
    if alike == "token":
        values = [float(x) for text in texts for window in text for x in window]
    elif alike == "window":
        values = [float(window.mean()) for text in texts for window in text]
    else:
        return math.log(sum(float(torch.cat([*t]).mean().exp()) for t in texts) / len(texts))
    return math.fsum(values) / len(values)
