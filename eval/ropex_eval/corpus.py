"""Texts to measure on: read, tokenised and cut into windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropex_eval.stdlib import held_out_files

_CHARACTERS = 16  # of a text that are read for each token; few languages and tokenizers need more

Text = tuple[str, str]
"""The name and the content of a document."""


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of one document, as long as the longest length that is measured.

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
    """The windows that every strategy is measured on.

    Attributes:
        source: What the user asked for.
        windows: The windows, all of one length.
        bos: Id of the token in front of each window; None if there is none.
        too_short: Documents that were left out, as they are shorter than one window.
    """

    source: str
    windows: tuple[Window, ...]
    bos: int | None
    too_short: int

    @property
    def documents(self) -> list[str]:
        """Names of the documents that windows were taken from, in order."""
        return list(dict.fromkeys(window.document for window in self.windows))

    @property
    def sha256(self) -> str:
        """Hash of every token that is read, in order."""
        digest = hashlib.sha256(str(self.bos).encode())
        for window in self.windows:
            digest.update(window.ids.to(torch.int64).numpy().tobytes())
        return digest.hexdigest()

    def inputs(self, window: Window, length: int) -> Tensor:
        """The first `length` tokens of a window, BOS included, `(length,)`."""
        return self._with_bos(window.ids[: self._text(length)])

    def last_inputs(self, window: Window, length: int) -> Tensor:
        """The last `length` tokens of a window, BOS included, `(length,)`."""
        return self._with_bos(window.ids[len(window.ids) - self._text(length) :])

    def _text(self, length: int) -> int:
        return length if self.bos is None else length - 1

    def _with_bos(self, ids: Tensor) -> Tensor:
        return ids if self.bos is None else torch.cat([ids.new_tensor([self.bos]), ids])


def load_corpus(source: str, tokenizer: Any, bos: int | None, length: int, windows: int) -> Corpus:
    """Read a source and cut `windows` windows of `length` tokens, BOS included, out of it.

    Windows do not overlap. Every document gives its first one before any gives a second one.

    Args:
        source: See `read_texts`.
        tokenizer: Of the model that is measured.
        bos: Id to put in front of each window, or None.
        length: Tokens of a window.
        windows: How many windows at most.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no text, or none is as long as a window.
    """
    size = length if bos is None else length - 1
    per_document: list[list[Window]] = []
    longest, too_short = ("", 0), 0
    for name, text in read_texts(source):
        ids = _encode(tokenizer, text, size * windows)
        longest = max(longest, (name, len(ids)), key=lambda pair: pair[1])
        if len(ids) < size:
            too_short += 1
            continue
        starts = range(0, len(ids) - size + 1, size)[:windows]
        per_document.append([Window(name, s, torch.tensor(ids[s : s + size])) for s in starts])
        if sum(map(len, per_document)) >= windows and len(per_document) >= windows:
            break
    if not per_document:
        raise ValueError(
            f"{source}: the longest text, {longest[0]}, has {longest[1]} tokens, and {size} are "
            "needed for the longest length; give a longer text or shorter --lengths"
        )
    rounds = max(map(len, per_document))
    ordered = [found[turn] for turn in range(rounds) for found in per_document if turn < len(found)]
    return Corpus(source, tuple(ordered[:windows]), bos, too_short)


def _encode(tokenizer: Any, text: str, wanted: int) -> list[int]:
    """Token ids of the beginning of `text`, at least `wanted` of them if it has so many."""

    def encode(part: str) -> list[int]:
        # A text that spells "<s>" means those three characters, not the token.
        settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[int] = tokenizer(part, **settings)["input_ids"]
        return ids

    ids = encode(text[: _CHARACTERS * wanted])
    if len(text) > _CHARACTERS * wanted:  # the last tokens are not to be seen: a word is cut there
        ids = ids[:-_CHARACTERS] if len(ids) >= wanted + _CHARACTERS else encode(text)
    return ids


def read_texts(source: str) -> Iterator[Text]:
    """The documents of a source, one by one.

    Args:
        source: A text file; a folder of text files; `FILE.jsonl:FIELD`, one document a line;
            `hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:SPLIT:FIELD` for a data set through `datasets`
            (split `test` and field `text` unless given), `NAME@CONFIG` where it has several
            configurations; or `stdlib` for long modules of Python's own library.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A document is empty or not text, or a field is missing.
    """
    if source == "stdlib":
        yield from ((path.name, _read(path)) for path in held_out_files())
        return
    if source.startswith("hf:"):
        yield from _read_dataset(source)
        return
    if not source:
        raise ValueError("the name of the text is empty")
    path = Path(source)
    file, colon, field = source.rpartition(":")
    if not path.exists() and colon and file.endswith((".jsonl", ".json")):
        yield from _read_jsonl(Path(file), field)
    elif path.suffix == ".jsonl":
        raise ValueError(f"{source}: say which field is the text, as in {source}:text")
    elif path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise ValueError(f"{source}: the folder holds no files")
        yield from ((file.name, _read(file)) for file in files)
    elif path.exists():
        yield path.name, _read(path)
    else:
        raise FileNotFoundError(f"no such file or folder: {source}")


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason})") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


def _read_jsonl(path: Path, field: str) -> Iterator[Text]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
            yield f"{path.name}:{number}", _field(record, field, f"{path}, line {number}")


def _read_dataset(source: str) -> Iterator[Text]:
    from datasets import load_dataset

    name, split, field, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    name, _, config = name.partition("@")
    if not name or any(rest):
        raise ValueError(f"{source}: write hf:NAME:SPLIT:FIELD or hf:NAME@CONFIG:SPLIT:FIELD")
    try:
        rows = load_dataset(name, config or None, split=split or "test", streaming=True)
        for number, record in enumerate(rows):
            yield f"{name}:{number}", _field(record, field or "text", f"{source}, row {number}")
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{source}: {str(error).splitlines()[0]}") from error


def _field(record: Any, field: str, place: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        known = ", ".join(record) if isinstance(record, dict) else "none"
        raise ValueError(f"{place}: the field {field!r} holds no text; fields: {known}")
    return value
