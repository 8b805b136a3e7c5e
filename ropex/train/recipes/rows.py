"""Rows of tokens from documents."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from ropex.texts.sources import read_texts
from ropex.texts.tokens import encode, first_token, require_embedded, usual_front
from ropex.train.recipes.recipe import Data, Source

Row = dict[str, Any]
"""`input_ids`, the `lengths` of the documents in it, and its `index` in the order of training."""


@dataclass(frozen=True)
class Cutter:
    """Cuts documents into rows.

    Attributes:
        tokenizer: Of the model.
        front: Ids in front of each piece of a document, such as BOS.
        length: Tokens of a row.
        require: Raises on ids that the model does not know.
    """

    tokenizer: Any
    front: tuple[int, ...]
    length: int
    require: Callable[[list[int]], None]

    @classmethod
    def of(cls, data: Data, tokenizer: Any, model: Any, name: str) -> Cutter:
        """The cutter of a stage; messages call the model `name`."""
        bos = first_token(tokenizer, usual_front(tokenizer, data.bos), name)
        front = () if bos is None else (bos,)
        return cls(
            tokenizer, front, data.length, lambda ids: require_embedded([*front, *ids], model, name)
        )

    def rows(self, source: Source) -> Iterator[Row]:
        """All rows of a source, in its own order.

        Raises:
            FileNotFoundError: There is no such text.
            ValueError: It has no row, or is not text.
        """
        lengths: list[int] = []
        documents = self._documents(source, lengths)
        if source.layout == "pack":
            cut = self._packed(documents, source.longest or self.length)
        else:
            cut = self._joined(documents) if source.layout == "join" else self._split(documents)
        empty = True
        for row in cut:
            empty = False
            yield row
        if empty:
            raise ValueError(
                f"{source.text}: the longest of {len(lengths)} documents has "
                f"{max(lengths, default=0)} tokens, and a row has {self.length}; give longer "
                "texts, a shorter data.length, or layout: join or pack"
            )

    def _documents(self, source: Source, lengths: list[int]) -> Iterator[list[int]]:
        """Token ids of each document; appends its length to `lengths`."""
        for _, text in read_texts(source.text, split="train"):
            ids = encode(self.tokenizer, text)
            self.require(ids)
            lengths.append(len(self.front) + len(ids))
            yield ids

    def _split(self, documents: Iterable[list[int]]) -> Iterator[Row]:
        size = self.length - len(self.front)
        for ids in documents:
            for start in range(0, len(ids) - size + 1, size):
                row = [*self.front, *ids[start : start + size]]
                yield {"input_ids": row, "lengths": [self.length]}

    def _joined(self, documents: Iterable[list[int]]) -> Iterator[Row]:
        row: list[int] = []
        for ids in documents:
            row += [*self.front, *ids]
            ends = range(self.length, len(row) + 1, self.length)
            for end in ends:
                yield {"input_ids": row[end - self.length : end], "lengths": [self.length]}
            row = row[len(ends) * self.length :]

    def _packed(self, documents: Iterable[list[int]], longest: int) -> Iterator[Row]:
        """Rows full of pieces; the rest of a document at the end of a row starts the next row."""
        row: list[int] = []
        lengths: list[int] = []
        for ids in documents:
            while ids:
                size = min(longest, self.length - len(row)) - len(self.front)
                row += [*self.front, *ids[:size]]
                lengths.append(len(self.front) + len(ids[:size]))
                ids = ids[size:]
                if self.length - len(row) <= len(self.front):
                    yield {"input_ids": row, "lengths": lengths}
                    row, lengths = [], []
        if row:
            yield {"input_ids": row, "lengths": lengths}


def turns(sources: tuple[Source, ...], count: int, seed: int) -> list[int]:
    """The source of each of `count` rows, by their shares."""
    shares = [source.share for source in sources]
    return random.Random(seed).choices(range(len(sources)), shares, k=count)


class MixedRows(Dataset[Row]):
    """Rows of several sources in the order of training.

    Args:
        pools: The rows of each source.
        chosen: The source of each row.
        seed: Of the order of a source's rows, which differs in every epoch.

    Attributes:
        rounds: Epochs of each source.
    """

    def __init__(self, pools: list[Any], chosen: list[int], seed: int) -> None:
        self.pools, self._places = pools, list[tuple[int, int]]()
        rows = [_shuffled(len(pool), f"{seed} {i}") for i, pool in enumerate(pools)]
        self._places = [(source, next(rows[source])) for source in chosen]
        self.rounds = [chosen.count(i) / len(pool) for i, pool in enumerate(pools)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:
        source, row = self._places[index]
        return {**self.pools[source][row], "index": index}


def _shuffled(size: int, seed: str) -> Iterator[int]:
    """Numbers below `size`, each once, then again in a different order, endlessly."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(range(size), size)


class StreamedRows(IterableDataset[Row]):
    """Rows that are cut while training; a source that ends starts again.

    Args:
        cutter: Cuts documents.
        sources: The texts.
        chosen: From which source each row comes.
    """

    def __init__(self, cutter: Cutter, sources: tuple[Source, ...], chosen: list[int]) -> None:
        self.cutter, self.sources, self.chosen = cutter, sources, chosen

    def __iter__(self) -> Iterator[Row]:
        streams = [self._endless(source) for source in self.sources]
        for index, source in enumerate(self.chosen):
            yield {**next(streams[source]), "index": index}

    def _endless(self, source: Source) -> Iterator[Row]:
        while True:
            yield from self.cutter.rows(source)
