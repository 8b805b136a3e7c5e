"""Score given answers by teacher forcing; tokens that several questions share are read once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Ids = tuple[int, ...]
"""Token ids."""

_PROBE = 24  # tokens; short, as every length is cached alike (see `_only_grows`)


@dataclass(frozen=True)
class Branch:
    """A continuation that leaves a text that it shares with others.

    Attributes:
        at: Tokens of the shared text in front of it.
        ids: What follows them, down to the end of the question.
        answer: What is expected next.
    """

    at: int
    ids: Ids
    answer: Ids

    @property
    def tokens(self) -> int:
        """Length of the sequence, answer included."""
        return self.at + len(self.ids) + len(self.answer)


@dataclass(frozen=True)
class Answer:
    """What a model thinks of an answer, token by token, given the ones before.

    Attributes:
        logprobs: Log-probability of each token, in nats.
        ranks: How many tokens of the vocabulary greedy decoding would prefer to each.
    """

    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether greedy decoding would give this answer."""
        return not any(self.ranks)


class AnswerScorer:
    """Scores answers under one loaded model, as it is patched when the scorer is made.

    The shared text is read once into a key-value cache, as far as the next branch needs it; each
    branch is read behind it and then cut off again. Greedy decoding would give an answer exactly
    if each of its tokens is the likeliest after the ones before, so one pass replaces one a token.

    Models that keep something else than a growing list of keys (a recurrent state) are found by
    trying, and then every branch is read from its first token.

    Args:
        model: A causal language model of transformers, in evaluation mode. Its rotation must not
            depend on the length of the sequence.
        chunk: Tokens that are read at a time.

    Raises:
        ValueError: `chunk` is not positive.
    """

    def __init__(self, model: Any, chunk: int = 2048) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}, it must be at least 1 token")
        self.model, self.chunk = model, chunk
        self.device = model.get_input_embeddings().weight.device
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cached = self._cache_serves()

    def score(self, trunk: Sequence[int], branches: Sequence[Branch]) -> tuple[Answer, ...]:
        """Score the answer of every branch.

        Args:
            trunk: Ids of the shared text.
            branches: In any order; each leaves the trunk at a place of its own.

        Returns:
            One answer a branch, in the order of `branches`.

        Raises:
            ValueError: A branch leaves the trunk where there is none, has no answer, or nothing
                stands before its answer.
        """
        for branch in branches:
            _check(branch, len(trunk))
        return (
            self._score_shared(trunk, branches)
            if self.cached
            else self._score_apart(trunk, branches)
        )

    @torch.no_grad()
    def _score_apart(self, trunk: Sequence[int], branches: Sequence[Branch]) -> tuple[Answer, ...]:
        return tuple(
            _grade(self._logits([*trunk[: b.at], *_fed(b)], len(b.answer)), b.answer)
            for b in branches
        )

    @torch.no_grad()
    def _score_shared(
        self, trunk: Sequence[int], branches: Sequence[Branch], cache: Any = None
    ) -> tuple[Answer, ...]:
        cache = _growing_cache() if cache is None else cache
        found: dict[int, Answer] = {}
        for index in sorted(range(len(branches)), key=lambda i: _shared(branches[i])):
            branch, start = branches[index], _shared(branches[index])
            self._fill(trunk[cache.get_seq_length() : start], cache)
            rest, rows = [*trunk[start : branch.at], *_fed(branch)], len(branch.answer)
            self._fill(rest[:-rows], cache)
            found[index] = _grade(self._logits(rest[-rows:], rows, cache), branch.answer)
            cache.crop(-len(rest))  # by a count to remove, which every version of it reads alike
        return tuple(found[index] for index in range(len(branches)))

    def _fill(self, ids: Sequence[int], cache: Any) -> None:
        """Read ids behind what the cache holds, `chunk` at a time."""
        for start in range(0, len(ids), self.chunk):
            self._logits(ids[start : start + self.chunk], 1, cache)

    def _logits(self, ids: Sequence[int], rows: int, cache: Any = None) -> Tensor:
        """Logits behind the last `rows` of the ids, `(rows, vocabulary)`."""
        options: dict[str, Any] = {"use_cache": cache is not None}
        if cache is not None:
            options["past_key_values"] = cache
        if self.keeps:
            options["logits_to_keep"] = rows
        logits: Tensor = self.model(torch.tensor([ids], device=self.device), **options).logits
        return logits[0, -rows:]

    def _cache_serves(self) -> bool:
        """Whether a cache that is extended and cut gives what plain forwards give."""
        vocabulary: int = self.model.get_input_embeddings().weight.shape[0]
        ids = tuple((7 * i + 1) % vocabulary for i in range(_PROBE))
        branches = [Branch(at, ids[at // 2 :][:4], ids[-3:]) for at in (_PROBE, 5, _PROBE // 2)]
        cache = _growing_cache()
        try:
            shared = self._score_shared(ids, branches, cache)
        except Exception:  # of any kind: what a model says to a cache that it does not know
            return False
        return _only_grows(cache, _PROBE) and _alike(
            shared, self._score_apart(ids, branches), self.model.dtype
        )


def _check(branch: Branch, trunk: int) -> None:
    if not 0 <= branch.at <= trunk:
        raise ValueError(
            f"a branch leaves at token {branch.at}; the shared text has places 0 to {trunk}"
        )
    if not branch.answer:
        raise ValueError("a branch has no answer; give at least one token")
    if branch.at + len(branch.ids) < 1:
        raise ValueError("nothing stands before an answer; give BOS or a question")


def _fed(branch: Branch) -> Ids:
    """What is read of a branch: all but the last token, which nothing follows."""
    return branch.ids + branch.answer[:-1]


def _shared(branch: Branch) -> int:
    """Tokens of the trunk that need no logits: the one before the answer does."""
    return branch.at if branch.ids else branch.at - 1


def _growing_cache() -> Any:
    """A cache that keeps all keys of all layers, of those with a sliding window as well.

    The config would make it drop keys that have left a window, and those cannot come back when a
    branch is cut off. The masks hide them anyway.
    """
    from transformers import DynamicCache

    return DynamicCache()


def _only_grows(cache: Any, tokens: int) -> bool:
    from transformers.cache_utils import DynamicLayer

    layers = cache.layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    return plain and cache.get_seq_length() == tokens


def _alike(left: Sequence[Answer], right: Sequence[Answer], dtype: torch.dtype) -> bool:
    tolerance = 1e-3 if dtype == torch.float32 else 0.25  # bfloat16 rounds logits of 20 to 0.125
    pairs = zip(left, right, strict=True)
    both = [pair for a, b in pairs for pair in zip(a.logprobs, b.logprobs, strict=True)]
    return all(abs(a - b) <= tolerance for a, b in both)


def _grade(logits: Tensor, answer: Ids) -> Answer:
    """Read the answer's tokens from the logits that predict them, `(tokens, vocabulary)`."""
    logits = logits.float()
    wanted = torch.tensor(answer, device=logits.device)[:, None]
    own = logits.gather(1, wanted)
    logprobs = logits.log_softmax(1).gather(1, wanted)[:, 0]
    # Of equals, greedy decoding takes the first; NaN is better than nothing, so never exact.
    places = torch.arange(logits.shape[1], device=logits.device)
    preferred = ~(logits <= own) | ((logits == own) & (places < wanted))
    return Answer(tuple(logprobs.tolist()), tuple(preferred.sum(1).tolist()))
