"""Words to count: which occur most often in the whole context."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from ropex_eval.measure.answers import Ids
from ropex_eval.tasks.context import Asked, Context, Setting, about_all, behind
from ropex_eval.tasks.pieces import code, distinct, word

# RULER's numbers, unless stated otherwise.
_COMMON = 10  # words to find
_TIMES = ((30, 3), (6, 1))  # counts of these and of others: from _LONG tokens on, and below
_LONG = 4096
_OTHERS = 10  # at least: ours
_TOKENS_PER_CODE = 50
_FEWEST_CODES = 74  # ours: from here on the fourth code always occurs more often than the fifth
_ZETA = math.pi**2 / 6  # of 2


@dataclass(frozen=True)
class _List:
    """The words of a numbered list.

    Attributes:
        common: Words to find.
        others: Words to fill it with.
        ids: Of every word.
        numbers: Ids of the numbers from 1 on.
    """

    common: list[str]
    others: list[str]
    ids: dict[str, Ids]
    numbers: list[Ids]

    @classmethod
    def of(cls, setting: Setting) -> _List:
        """Draw more words than will fit."""
        rng, encode = setting.rng("words"), setting.encode
        most = max(400, setting.length // 3)  # items: a number, a dot and a word each
        words = distinct(lambda: word(rng), _COMMON + most)
        ids = dict(zip(words, encode.all([f" {each}" for each in words]), strict=True))
        numbers = encode.all([f" {n}." for n in range(1, most + 1)])
        return cls(sorted(words[:_COMMON]), words[_COMMON:], ids, numbers)

    def sizes(self, often: int, seldom: int) -> list[int]:
        """Tokens of the list with 0, 1, 2, ... other words, with their repetitions."""
        first = often * sum(len(self.ids[each]) for each in self.common)
        repeats = (seldom * len(self.ids[each]) for each in self.others)
        counted = [0, *accumulate(map(len, self.numbers))][often * _COMMON :: seldom]
        totals = zip(accumulate(repeats, initial=first), counted, strict=False)
        return [items + numbers for items, numbers in totals]

    def write(self, items: list[str]) -> Ids:
        """Number the items."""
        pairs = zip(self.numbers, items, strict=False)
        return tuple(i for number, item in pairs for i in (*number, *self.ids[item]))


def cwe(setting: Setting) -> Context:
    """A numbered list of words, ten of which occur more often than the others."""
    listed, encode = _List.of(setting), setting.encode
    question = "\nThe ten words that occur most often in the list, in alphabetical order, are"
    head, asked = encode("\nA list of words:"), Asked.of(encode, question, *listed.common)
    taken = len(setting.start) + len(head) + asked.tokens
    plans = _TIMES if setting.length >= _LONG else _TIMES[1:]
    fits = (each for each in plans if taken + listed.sizes(*each)[_OTHERS] <= setting.length)
    often, seldom = next(fits, _TIMES[-1])
    sizes = listed.sizes(often, seldom)
    count = bisect_right(sizes, setting.room(taken, least=sizes[_OTHERS])) - 1
    items = listed.common * often + listed.others[:count] * seldom
    setting.rng("order").shuffle(items)
    trunk = behind(setting, head + listed.write(items), asked.tokens)
    return about_all(setting, trunk, asked)


def fwe(setting: Setting) -> Context:
    """Coded words whose counts follow a power law; dots are the commonest, and not asked for."""
    rng, encode = setting.rng(), setting.encode
    kinds = max(5, setting.length // _TOKENS_PER_CODE)
    words = ["...", *distinct(lambda: code(rng, 6), kinds - 1)]
    pieces = encode.all([f" {each}" for each in words])
    question = "\nThe three codes that occur most often in it, from the commonest on, are"
    asked = Asked.of(encode, question, *words[1:4])
    head = encode("\nA coded text, in which dots mean nothing:")

    def size(total: int) -> int:
        return sum(n * len(ids) for n, ids in zip(_zipf(total, kinds), pieces, strict=True))

    taken = len(setting.start) + len(head) + asked.tokens
    room = setting.room(taken, least=size(_FEWEST_CODES))
    total = bisect_right(range(2 * room), room, key=size) - 1
    items = [ids for n, ids in zip(_zipf(total, kinds), pieces, strict=True) for _ in range(n)]
    rng.shuffle(items)
    trunk = behind(setting, (*head, *(i for item in items for i in item)), asked.tokens)
    return about_all(setting, trunk, asked)


def _zipf(total: int, kinds: int) -> list[int]:
    """How often each kind occurs among about `total` words, by its rank."""
    return [int(total / (rank * rank * _ZETA)) for rank in range(1, kinds + 1)]
