"""What "perplexity at length L" can mean: which tokens are scored, and what each has read before.

All definitions are read from one table, the negative log-likelihood of a token after the text that
starts at a given place. A definition says which stretches of the table it wants, and how they are
averaged. None is wrong, but they answer different questions, and disagree by a factor of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Weigh = Literal["token", "window", "excerpt"]
"""What counts alike: every token, every window, or every excerpt's perplexity."""


@dataclass(frozen=True)
class Settings:
    """What definitions need to know besides the length.

    Attributes:
        targets: Tokens that `local` and `fixed` score.
        stride: Tokens from one sliding window to the next; a quarter of the length if None.
        short: Tokens of the short context that `longppl` compares with; an eighth of the length,
            but at most 4096, if None.
        evaluator: The strategy by which `longppl` tells which tokens are key tokens.
    """

    targets: int
    stride: int | None = None
    short: int | None = None
    evaluator: str = "none"


@dataclass(frozen=True)
class Text:
    """An excerpt, for the purpose of finding spans in it.

    Attributes:
        tokens: Its tokens, without BOS.
        bos: Whether a BOS stands in front of what is read.
    """

    tokens: int
    bos: bool


@dataclass(frozen=True)
class Span:
    """Tokens to score, and the text that is read before them.

    Attributes:
        start: First token of the excerpt that is read.
        length: Tokens that are read, a BOS included.
        bos: Whether a BOS stands in front.
        first: First token of the excerpt that is scored.
        last: One past the last; it may be one past the tokens that are read.
    """

    start: int
    length: int
    bos: bool
    first: int
    last: int


Spans = Callable[[Text, int, Settings], list[Span]]


@dataclass(frozen=True)
class Definition:
    """A definition of perplexity at a length.

    Attributes:
        name: Its name on the command line and in results.
        explanation: What it is the perplexity of, for L tokens, in one line.
        source: Who publishes numbers of this kind.
        spans: What it scores in an excerpt.
        weigh: What counts alike in the mean.
    """

    name: str
    explanation: str
    source: str
    spans: Spans
    weigh: Weigh = "token"


def whole(start: int, length: int, bos: bool) -> Span:
    """Every token of a window that has one before it."""
    end = start + length - bos
    return Span(start, length, bos, start + (not bos), end)


def _prefix(text: Text, length: int, settings: Settings) -> list[Span]:
    return [whole(0, length, text.bos)]


def _local(text: Text, length: int, settings: Settings) -> list[Span]:
    end = length - text.bos
    return [Span(0, length, text.bos, end - settings.targets, end)]


def _fixed(text: Text, length: int, settings: Settings) -> list[Span]:
    start = text.tokens - (length - text.bos)
    return [Span(start, length, text.bos, text.tokens - settings.targets, text.tokens)]


def _sliding(text: Text, length: int, settings: Settings) -> list[Span]:
    """Windows at multiples of the stride, each scoring what the one before did not reach."""
    stride, size = _stride(length, settings), length - text.bos
    spans = [whole(0, length, text.bos)]
    while spans[-1].last < text.tokens:
        start, first = spans[-1].start + stride, spans[-1].last
        end = min(start + size, text.tokens)
        spans.append(Span(start, end - start + text.bos, text.bos, first, end))
    return spans


def _disjoint(text: Text, length: int, settings: Settings) -> list[Span]:
    size = length - text.bos
    starts = range(0, text.tokens - 1 + text.bos, size)
    return [whole(s, min(size, text.tokens - s) + text.bos, text.bos) for s in starts]


def _rolling(text: Text, length: int, settings: Settings) -> list[Span]:
    """L tokens after a BOS, then L after one token of context; the last window is a whole one."""
    _require_bos(text, "rolling")
    spans = [Span(0, min(length, text.tokens), True, 0, min(length, text.tokens))]
    while (done := spans[-1].last) < text.tokens:
        end = min(done + length, text.tokens)
        spans.append(Span(end - length - 1, length, False, done, end))
    return spans


def _second_half(text: Text, length: int, settings: Settings) -> list[Span]:
    """Windows of L tokens, the first of each replaced by BOS; the second half is scored."""
    spans = []
    for begin in range(0, text.tokens + text.bos - length + 1, length):
        first = begin + length // 2 + (not text.bos)
        spans.append(Span(begin, length, text.bos, first, begin + length - text.bos))
    return spans


def _overlapping(text: Text, length: int, settings: Settings) -> list[Span]:
    starts = range(0, text.tokens - length, _stride(length, settings))[:-1]
    return [whole(start, length, False) for start in starts]


def _longppl(text: Text, length: int, settings: Settings) -> list[Span]:
    """The long text, and windows that give each token a short context."""
    return [whole(0, length, text.bos), *short_spans(text, length, settings)]


def short_spans(text: Text, length: int, settings: Settings) -> list[Span]:
    """Windows that score each token after the shortest context, or up to a quarter more."""
    usual = max(4, min(4096, length // 8))
    short = usual if settings.short is None else settings.short
    step, end = max(1, short // 4), length - text.bos
    spans = []
    for start in range(0, end - short, step):
        stop = min(start + short + step, end)
        spans.append(Span(start, stop - start + text.bos, text.bos, start + short, stop))
    return spans


def _stride(length: int, settings: Settings) -> int:
    return settings.stride or max(1, length // 4)


def _require_bos(text: Text, name: str) -> None:
    if not text.bos:
        raise ValueError(f"{name} starts with a token that is not part of the text; give --bos")


_ALL = (
    Definition(
        "local", "the last {targets} of the first L tokens", "LM-Infinite, by position", _local,
    ),
    Definition(
        "fixed", "the same {targets} tokens, read after ever more text before them", "ReRoPE",
        _fixed,
    ),
    Definition("prefix", "all of the first L tokens", "YaRN, LongRoPE, PoSE", _prefix),
    Definition(
        "sliding", "every token, read in windows of L tokens that move on by {stride}",
        "Press et al., position interpolation, PoSE", _sliding,
    ),
    Definition(
        "window_mean",
        "windows of L tokens that move on by {stride}, each counting alike, a short last one too",
        "YaRN and LongRoPE without --truncate", _sliding, "window",
    ),
    Definition(
        "disjoint", "every token, read in windows of L tokens side by side", "Press et al.",
        _disjoint,
    ),
    Definition(
        "rolling", "every token, read in windows of L tokens after one token of context",
        "lm-evaluation-harness, loglikelihood_rolling", _rolling,
    ),
    Definition(
        "second_half", "the second half of windows of L tokens side by side", "llama.cpp",
        _second_half,
    ),
    Definition(
        "overlapping",
        "all tokens of windows of L tokens that move on by {stride} and begin without BOS",
        "LongLoRA, ChunkLlama", _overlapping, "window",
    ),
    Definition(
        "mean_perplexity", "each excerpt's first L tokens, and the mean of these",
        "Hugging Face evaluate", _prefix, "excerpt",
    ),
    Definition(
        "longppl",
        "the tokens that {evaluator} finds far more probable after all L tokens than after an "
        "eighth of them",
        "Fang et al., LongPPL", _longppl,
    ),
)  # fmt: skip

DEFINITIONS = {each.name: each for each in _ALL}
HEADLINE = ("local", "fixed")


def explain(name: str, settings: Settings) -> str:
    """What a definition is the perplexity of, in words."""
    if name not in DEFINITIONS:
        return ""
    stride = f"{settings.stride} tokens" if settings.stride else "L / 4"
    return DEFINITIONS[name].explanation.format(
        targets=settings.targets, stride=stride, evaluator=settings.evaluator
    )


def require_known(names: Sequence[str]) -> None:
    """Raise a ValueError for a name that is no definition."""
    for name in names:
        if name not in DEFINITIONS:
            raise ValueError(f"unknown definition {name!r}; known: {', '.join(DEFINITIONS)}")
