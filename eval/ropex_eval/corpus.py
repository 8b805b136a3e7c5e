"""The excerpts that every strategy is measured on: documents, tokenised and cut."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ropex.files import atomically
from ropex.texts import read_texts
from ropex.tokens import encode
from ropex_eval.definitions import Text

_CHARACTERS = 16  # of a text that are read for each token; few languages and tokenizers need more


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A piece of one document.

    Attributes:
        document: Name of the document.
        start: Its first token's place in the document.
        ids: Token ids, `(tokens,)`, without BOS.
    """

    document: str
    start: int
    ids: Tensor


@dataclass(frozen=True, eq=False)
class Corpus:
    """The excerpts that every strategy is measured on.

    Attributes:
        source: What the user asked for.
        excerpts: All of one length.
        bos: Id of the token in front of each text that is read; None if there is none.
        too_short: Documents that were left out, as they are shorter than one excerpt.
    """

    source: str
    excerpts: tuple[Excerpt, ...]
    bos: int | None
    too_short: int

    @property
    def tokens(self) -> int:
        """Tokens of an excerpt, BOS not included."""
        return len(self.excerpts[0].ids)

    @property
    def text(self) -> Text:
        """What definitions of perplexity need to know of an excerpt."""
        return Text(self.tokens, self.bos is not None)

    def share_of(self, token: int | None) -> float:
        """Share of the tokens that are this one; 0 if there is no such token."""
        if token is None:
            return 0.0
        found = sum(int((excerpt.ids == token).sum()) for excerpt in self.excerpts)
        return found / (len(self.excerpts) * self.tokens)

    @property
    def documents(self) -> list[str]:
        """Names of the documents that excerpts were taken from, in order."""
        return list(dict.fromkeys(excerpt.document for excerpt in self.excerpts))

    @property
    def clusters(self) -> list[str]:
        """What each excerpt is independent of: its document, or itself if there is only one."""
        if len(self.documents) > 1:
            return [excerpt.document for excerpt in self.excerpts]
        return [f"{excerpt.document}:{excerpt.start}" for excerpt in self.excerpts]

    def first(self, count: int) -> Corpus:
        """The first excerpts of these."""
        return replace(self, excerpts=self.excerpts[:count])

    def save(self, path: Path) -> None:
        """Write the tokens and where they come from, complete or not at all."""
        about = {
            "source": self.source,
            "bos": self.bos,
            "too_short": self.too_short,
            "excerpts": [[each.document, each.start] for each in self.excerpts],
        }
        ids = torch.stack([each.ids for each in self.excerpts]).to(torch.int32)
        with atomically(path) as temporary:
            temporary.write_bytes(serialise({"ids": ids}, {"ropex": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Read what `save` wrote.

        Raises:
            ValueError: The file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["ropex"])
                ids = file.get_tensor("ids").long()
            places = zip(about["excerpts"], ids, strict=True)
            excerpts = tuple(Excerpt(name, start, row) for (name, start), row in places)
            return cls(about["source"], excerpts, about["bos"], about["too_short"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]})") from None

    @property
    def sha256(self) -> str:
        """Hash of every token that is read, in order."""
        digest = hashlib.sha256(str(self.bos).encode())
        for excerpt in self.excerpts:
            digest.update(excerpt.ids.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()


def load_corpus(source: str, tokenizer: Any, bos: int | None, length: int, excerpts: int) -> Corpus:
    """Read a source and cut `excerpts` pieces of `length` tokens, BOS included, out of it.

    Excerpts do not overlap. Every document gives its first one before any gives a second one.

    Args:
        source: See `ropex.texts.read_texts`.
        tokenizer: Of the model that is measured.
        bos: Id to put in front, or None.
        length: Tokens of an excerpt.
        excerpts: How many at most.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no text, or none is as long as an excerpt.
    """
    size = length if bos is None else length - 1
    per_document: list[list[Excerpt]] = []
    longest, too_short = ("", 0), 0
    for name, text in read_texts(source):
        ids = _encode(tokenizer, text, size * excerpts)
        longest = max(longest, (name, len(ids)), key=lambda pair: pair[1])
        if len(ids) < size:
            too_short += 1
            continue
        starts = range(0, len(ids) - size + 1, size)[:excerpts]
        per_document.append([Excerpt(name, s, torch.tensor(ids[s : s + size])) for s in starts])
        if sum(map(len, per_document)) >= excerpts and len(per_document) >= excerpts:
            break
    if not per_document:
        raise ValueError(
            f"{source}: the longest text, {longest[0]}, has {longest[1]} tokens, and {size} are "
            "needed for the longest length; give a longer text or shorter --lengths"
        )
    rounds = max(map(len, per_document))
    ordered = [found[turn] for turn in range(rounds) for found in per_document if turn < len(found)]
    return Corpus(source, tuple(ordered[:excerpts]), bos, too_short)


def _encode(tokenizer: Any, text: str, wanted: int) -> list[int]:
    """Token ids of the beginning of `text`, at least `wanted` of them if it has so many."""
    ids = encode(tokenizer, text[: _CHARACTERS * wanted])
    if len(text) > _CHARACTERS * wanted:  # the last tokens are not to be seen: a word is cut there
        ids = ids[:-_CHARACTERS] if len(ids) >= wanted + _CHARACTERS else encode(tokenizer, text)
    return ids
