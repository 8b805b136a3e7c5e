"""The table behind every number: the NLL of a token under a strategy, after a given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ropex_eval.scores.definitions import Span
from ropex_eval.study.corpus import Corpus
from ropex_eval.study.passes import Pass, rows
from ropex_eval.study.store import Store, Stored


class NotMeasured(ValueError):
    """A number was asked for that the table does not hold."""


@dataclass(frozen=True)
class Keys:
    """What decides the numbers of a strategy besides the text, by length.

    Attributes:
        ranges: First and last length (None: and all beyond), and the key of their plan.
    """

    ranges: tuple[tuple[int, int | None, str], ...]

    def at(self, length: int) -> str:
        """The key for passes of a length.

        Raises:
            NotMeasured: The strategy has a plan for each length, and none was made for this one.
        """
        for first, last, key in self.ranges:
            if first <= length and (last is None or length <= last):
                return key
        raise NotMeasured(f"it has a plan of its own at {length} tokens")


@dataclass(frozen=True, eq=False)
class Table:
    """What is known of one strategy.

    Attributes:
        corpus: The excerpts.
        keys: What decides its numbers besides the text.
        store: Where they are.
    """

    corpus: Corpus
    keys: Keys
    store: Store

    def nll(self, excerpt: int, span: Span) -> Tensor:
        """NLL of the tokens of a span, `(last - first,)`, float32.

        Raises:
            NotMeasured: They were not scored after this text.
        """
        scored = rows(span)
        each = Pass(excerpt, span.start, span.bos, span.length, span.length, (scored,))
        found = self.find(each)
        if found is None:
            raise NotMeasured(
                f"tokens {span.first} to {span.last} of excerpt {excerpt} were not read from "
                f"token {span.start} on in a text of {span.length} tokens"
            )
        return found.at(*scored)

    def find(self, each: Pass) -> Stored | None:
        """A stored pass that says what this one would, or None."""
        key = self.keys.at(each.length)
        return self.store.find(key, each.ids(self.corpus), each.length, each.rows)

    def missing(self, wanted: Sequence[Pass]) -> list[Pass]:
        """The passes that nothing stored answers for."""
        return [each for each in wanted if self.find(each) is None]
