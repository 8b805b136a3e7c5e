"""Training rows of the demo checkpoint: text, needles, facts and copies, with loss weights.

A row is a list of token ids that starts with BOS, and a weight for each of them as a target. The
retrieval rows exist so that a needle test measures the rotation, and not a model that never learned
to retrieve.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

FILLER = "The river runs slow. The stones are warm. A bird sings twice. We walk on. Then we rest. "
# fmt: off
NAMES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Quito", "Delhi", "Hanoi", "Paris", "Rome", "Berlin",
    "Madrid", "Dublin", "Vienna", "Athens", "Warsaw", "Prague", "Tokyo", "Seoul", "Boston",
    "Denver", "Dallas", "Austin", "Tunis", "Accra", "Dakar", "Nairobi", "Lagos", "Havana",
    "Bogota", "Kyoto", "Osaka", "Milan", "Turin", "Geneva", "Zurich", "Munich", "Bremen", "Lyon",
    "Nice", "Porto", "Seville", "Bilbao", "Glasgow",
)
# fmt: on

Row = tuple[list[int], list[float]]


@dataclass(frozen=True)
class RowSampler:
    """Draws rows of a chosen length.

    Attributes:
        encode: Text to token ids, without special tokens.
        documents: Token ids of the training documents.
        bos: Id of the token that starts every row.
        vocabulary: Ids from 2 up to this one are drawn for copies.
        shares: Probability of each kind of row: "needle", "facts" and "copy"; text otherwise.
        answer_weight: Weight of an answer's tokens in the loss.
    """

    encode: Callable[[str], list[int]]
    documents: list[list[int]]
    bos: int
    vocabulary: int
    shares: dict[str, float]
    answer_weight: float

    def row(self, rng: random.Random, length: int) -> Row:
        """One row of `length` + 1 tokens: `length` inputs, and the targets one place later."""
        kinds = {"needle": self.needle, "facts": self._facts, "copy": self._copy}
        draw = rng.random()
        for kind, share in self.shares.items():
            if draw < share:
                return kinds[kind](rng, length)
            draw -= share
        return self._text(rng, length)

    def _text(self, rng: random.Random, length: int) -> Row:
        ids = [self.bos, *self._excerpt(rng, length)]
        return ids, [1.0] * len(ids)

    def _copy(self, rng: random.Random, length: int) -> Row:
        period = rng.randint(length // 16, length // 2)
        string = [rng.randrange(2, self.vocabulary) for _ in range(period)]
        repeats = -(-length // period)
        ids = [self.bos, *(string * repeats)[:length]]
        return ids, [0.0] * (period + 1) + [1.0] * (length - period)

    def needle(self, rng: random.Random, length: int, depth: float | None = None) -> Row:
        """A number hidden at a depth from 0 to 1 (any, if None), and asked for at the end."""
        key = _digits(rng)
        needle = self.encode(f"\nThe pass key is {key}. Remember it.\n")
        question, answer = self.encode("\nWhat is the pass key? The pass key is"), _answer(key)
        room = length - len(needle) - len(question) - len(self.encode(answer))
        hay = self._filler(room) if rng.random() < 0.5 else self._excerpt(rng, room)
        place = rng.randint(0, len(hay)) if depth is None else round(depth * len(hay))
        context = [*hay[:place], *needle, *hay[place:], *question]
        return self._asked(context, [(answer, [])], length)

    def _facts(self, rng: random.Random, length: int) -> Row:
        most = min(len(NAMES), max(2, length // 24))
        names = rng.sample(NAMES, rng.randint(2, most))
        facts = {name: _digits(rng) for name in names}
        context = self.encode(
            "".join(f"The number of {name} is {value}. " for name, value in facts.items()) + "\n"
        )
        asked = rng.sample(names, len(names)) * 4
        questions = [
            (_answer(facts[name]), self.encode(f" The number of {name} is")) for name in asked
        ]
        return self._asked(context, questions, length)

    def _asked(
        self, context: list[int], questions: list[tuple[str, list[int]]], length: int
    ) -> Row:
        ids, weights = [self.bos, *context], [1.0] * (len(context) + 1)
        for answer, question in questions:
            answer_ids = self.encode(answer)
            ids += [*question, *answer_ids]
            weights += [1.0] * len(question) + [self.answer_weight] * len(answer_ids)
        surplus = length + 1 - len(ids)
        if surplus > 0:  # a short row is filled up with text that is not trained on
            ids, weights = ids + [self.bos] * surplus, weights + [0.0] * surplus
        return ids[: length + 1], weights[: length + 1]

    def _excerpt(self, rng: random.Random, length: int) -> list[int]:
        document = rng.choice(self.documents)  # the documents are pieces of equal length
        start = rng.randint(0, max(0, len(document) - length))
        return document[start : start + length]

    def _filler(self, length: int) -> list[int]:
        filler = self.encode(FILLER)
        return (filler * (length // len(filler) + 1))[:length]


def _digits(rng: random.Random) -> str:
    return f"{rng.randrange(100_000):05d}"


def _answer(value: str) -> str:
    return f" {value}."
