"""The excerpts that every strategy is measured on: documents, tokenised and cut."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ropex.files.writing import atomically
from ropex.sizes import count as counted
from ropex.texts.sources import read_texts
from ropex.texts.tokens import encode
from ropex_eval.scores.definitions import Text

_CHARACTERS = 16  # of a text that are read for each token; few languages and tokenizers need more
_UNKNOWN = 0.01  # share of unknown tokens from which on a text is not the model's
_STRETCH = 8  # tokens: by chance no two texts share many of them
_SKETCH = 256  # of the hashes of a document's stretches, which are enough to compare it by
_PRIME = 0x5851F42D4C957F2D


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
        repeated: Documents that were left out, as all that would be read of them is in others.
    """

    source: str
    excerpts: tuple[Excerpt, ...]
    bos: int | None
    too_short: int
    repeated: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of an excerpt, BOS not included."""
        return len(self.excerpts[0].ids)

    @property
    def text(self) -> Text:
        """What definitions of perplexity need to know of an excerpt."""
        return Text(self.tokens, self.bos is not None)

    @property
    def largest_id(self) -> int:
        """The largest id that is read."""
        return max(self.bos or 0, *(int(each.ids.max()) for each in self.excerpts))

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

    @property
    def alike(self) -> list[tuple[str, str]]:
        """Documents of which half or more of the stretches of tokens are the same, in pairs."""
        sketches: dict[str, set[int]] = {}
        for cluster, excerpt in zip(self.clusters, self.excerpts, strict=True):
            sketches.setdefault(cluster, set()).update(_stretches(excerpt.ids))
        smallest = {name: set(sorted(found)[:_SKETCH]) for name, found in sketches.items()}
        return [
            pair
            for pair in combinations(smallest, 2)
            if _alike(smallest[pair[0]], smallest[pair[1]])
        ]

    def warnings(self, tokenizer: Any) -> tuple[str, ...]:
        """What a reader of numbers on this text should know of it."""
        found, share = [], self.share_of(tokenizer.unk_token_id)
        if share > _UNKNOWN:
            found.append(
                f"{share:.0%} of the tokens are {tokenizer.unk_token}: the tokenizer does not know "
                "this text, so its perplexities say little"
            )
        if self.repeated:
            found.append(
                f"{counted(self.repeated, 'document')} repeated others word for word and "
                f"{'was' if self.repeated == 1 else 'were'} left out"
            )
        if alike := self.alike:
            found.append(
                f"some documents are nearly the same ({' and '.join(alike[0])}: "
                f"{counted(len(alike), 'pair')} in all), yet count as independent: intervals and "
                "verdicts are surer than they should be"
            )
        return tuple(found)

    def first(self, count: int) -> Corpus:
        """The first excerpts of these."""
        return replace(self, excerpts=self.excerpts[:count])

    def save(self, path: Path) -> None:
        """Write the tokens and where they come from, complete or not at all."""
        about = {
            "source": self.source, "bos": self.bos, "too_short": self.too_short,
            "repeated": self.repeated,
            "excerpts": [[each.document, each.start] for each in self.excerpts],
        }  # fmt: skip
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
            left_out = about["too_short"], about.get("repeated", 0)
            return cls(about["source"], excerpts, about["bos"], *left_out)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]})") from None

    @property
    def sha256(self) -> str:
        """Hash of every token that is read, in order."""
        digest = hashlib.sha256(str(self.bos).encode())
        for excerpt in self.excerpts:
            digest.update(excerpt.ids.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()


def imagined_corpus(length: int, bos: int | None, excerpts: int) -> Corpus:
    """Excerpts of `length` tokens, BOS included, that nobody has: to count what they would take."""
    _require_some(excerpts)
    ids = torch.zeros(1, dtype=torch.long).expand(length - (bos is not None))
    return Corpus("", (Excerpt("", 0, ids),) * excerpts, bos, 0)


def load_corpus(source: str, tokenizer: Any, bos: int | None, length: int, excerpts: int) -> Corpus:
    """Read a source and cut `excerpts` pieces of `length` tokens, BOS included, out of it.

    Excerpts do not overlap. Every document gives its first one before any gives a second one. No
    tokens are read twice: what repeats an excerpt is left out.

    Args:
        source: See `ropex.texts.sources.read_texts`.
        tokenizer: Of the model that is measured.
        bos: Id to put in front, or None.
        length: Tokens of an excerpt.
        excerpts: How many at most.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no text, or none is as long as an excerpt.
    """
    _require_some(excerpts)
    size = length if bos is None else length - 1
    per_document: list[list[Excerpt]] = []
    longest, too_short, repeated = ("", 0), 0, 0
    seen: set[bytes] = set()
    for name, text in read_texts(source):
        ids = _encode(tokenizer, text, size * excerpts)
        longest = max(longest, (name, len(ids)), key=lambda pair: pair[1])
        if len(ids) < size:
            too_short += 1
            continue
        starts = range(0, len(ids) - size + 1, size)[:excerpts]
        cut = (Excerpt(name, s, torch.tensor(ids[s : s + size])) for s in starts)
        if fresh := [each for each in cut if _is_new(each.ids, seen)]:
            per_document.append(fresh)
        else:
            repeated += 1
        if sum(map(len, per_document)) >= excerpts and len(per_document) >= excerpts:
            break
    if not per_document:
        raise ValueError(
            f"{source}: the longest text, {longest[0]}, has {longest[1]} tokens, and {size} are "
            "needed for the longest length; give a longer text or shorter --lengths"
        )
    rounds = max(map(len, per_document))
    ordered = [found[turn] for turn in range(rounds) for found in per_document if turn < len(found)]
    return Corpus(source, tuple(ordered[:excerpts]), bos, too_short, repeated)


def _require_some(excerpts: int) -> None:
    if excerpts < 1:
        raise ValueError(f"--excerpts is {excerpts}, it must be at least 1")


def _is_new(ids: Tensor, seen: set[bytes]) -> bool:
    """Whether these tokens are not among what was seen, to which they are added."""
    digest = hashlib.sha256(ids.numpy().tobytes()).digest()
    new = digest not in seen
    seen.add(digest)
    return new


def _stretches(ids: Tensor) -> list[int]:
    """The smallest hashes of all stretches of tokens: the same of equal texts."""
    if len(ids) < _STRETCH:
        return []
    powers = torch.tensor([pow(_PRIME, place, 2**63) for place in range(_STRETCH)])
    hashes = (ids.long().unfold(0, _STRETCH, 1) * powers).sum(-1) * _PRIME
    hashes = (hashes ^ (hashes >> 29)) * _PRIME
    smallest: list[int] = hashes.unique()[:_SKETCH].tolist()
    return smallest


def _alike(one: set[int], other: set[int]) -> bool:
    """Whether half of the stretches are shared (a bottom sketch: Broder, 1997)."""
    both = sorted(one | other)[:_SKETCH]
    return bool(both) and 2 * sum(each in one and each in other for each in both) >= len(both)


def _encode(tokenizer: Any, text: str, wanted: int) -> list[int]:
    """Token ids of the beginning of `text`, at least `wanted` of them if it has so many."""
    ids = encode(tokenizer, text[: _CHARACTERS * wanted])
    if len(text) > _CHARACTERS * wanted:  # the last tokens are not to be seen: a word is cut there
        ids = ids[:-_CHARACTERS] if len(ids) >= wanted + _CHARACTERS else encode(tokenizer, text)
    return ids
