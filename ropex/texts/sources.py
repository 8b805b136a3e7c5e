"""Texts of a source, one document after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ropex.texts.standard_library import held_out_files, training_texts

Text = tuple[str, str]
"""The name and the content of a document."""


def read_texts(source: str, *, split: str = "test") -> Iterator[Text]:
    """The documents of a source, one by one.

    Args:
        source: A text file; a folder of text files; `FILE.jsonl:FIELD`, one document a line;
            `hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:SPLIT:FIELD` for a data set through `datasets`
            (field `text` unless given), `NAME@CONFIG` where it has several configurations; `stdlib`
            for long modules of Python's own library, or `stdlib-training` for its other modules.
        split: Split of a data set, if the source names none.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A document is empty or not text, or a field is missing.
    """
    if source == "stdlib":
        yield from ((path.name, _read(path)) for path in held_out_files())
        return
    if source == "stdlib-training":
        yield from training_texts().items()
        return
    if source.startswith("hf:"):
        yield from _read_dataset(source, split)
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
    if not path.is_file():  # a pipe may never end
        raise ValueError(f"{path} is not a regular file; write the text to one, and name that")
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
            except RecursionError:
                raise ValueError(f"{path}, line {number}: nested too deeply to be read") from None
            except ValueError as error:  # such as an integer of thousands of digits
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
            yield f"{path.name}:{number}", _field(record, field, f"{path}, line {number}")


def _read_dataset(source: str, split: str) -> Iterator[Text]:
    from datasets import load_dataset

    name, given, field, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    name, _, config = name.partition("@")
    if not name or any(rest):
        raise ValueError(f"{source}: write hf:NAME:SPLIT:FIELD or hf:NAME@CONFIG:SPLIT:FIELD")
    try:
        rows = load_dataset(name, config or None, split=given or split, streaming=True)
        for number, record in enumerate(rows):
            yield f"{name}:{number}", _field(record, field or "text", f"{source}, row {number}")
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{source}: {str(error).splitlines()[0]}") from error


def _field(record: Any, field: str, place: str) -> str:
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        known = ", ".join(record) if isinstance(record, dict) else "none"
        raise ValueError(f"{place}: the field {field!r} holds no text; fields: {known}")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can encode it
        what = f"the field {field!r} holds half of a character (a lone surrogate)"
        raise ValueError(f"{place}: {what}, which is no text") from None
    return value
