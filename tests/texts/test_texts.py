"""Texts: where they come from, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropex.texts.sources import read_texts
from ropex.texts.standard_library import HELD_OUT, held_out_files, training_texts


def write_jsonl(path: Path, records: list[Any]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"text": "training", "body": "b"}])
    write_jsonl(
        folder / "test.jsonl", [{"text": "one", "body": "eins"}, {"text": "two", "body": "zwei"}]
    )
    return folder


def test_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "bücher.txt").write_bytes("\ufeffGrüße\r\nund mehr".encode())
    assert list(read_texts(str(tmp_path / "bücher.txt"))) == [("bücher.txt", "Grüße\nund mehr")]


def test_folder_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c", ".hidden"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "d.txt").write_text("not read", encoding="utf-8")
    names = ["a.md", "b.txt", "c"]
    assert list(read_texts(str(tmp_path))) == [(name, f"text of {name}") for name in names]


def test_jsonl_is_one_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"t": "one"}\n\n{"t": "two\\nlines", "x": 1}\n', encoding="utf-8")
    read = list(read_texts(f"{path}:t"))
    assert read == [("docs.jsonl:1", "one"), ("docs.jsonl:3", "two\nlines")]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_jsonl_lines_end_at_line_feeds_alone(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "docs.jsonl"
    text = f"one{separator}document"
    path.write_text(json.dumps({"t": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_texts(f"{path}:t")) == [("docs.jsonl:1", text)]


def test_colon_in_the_name_of_a_file_is_no_field(tmp_path: Path) -> None:
    (tmp_path / "a.json:b").write_text("plain", encoding="utf-8")
    assert list(read_texts(f"{tmp_path}/a.json:b")) == [("a.json:b", "plain")]


@pytest.mark.parametrize(
    ("suffix", "texts"),
    [
        ("", ["one", "two"]),
        (":test", ["one", "two"]),
        (":test:body", ["eins", "zwei"]),
        (":train", ["training"]),
        ("@default:train", ["training"]),
        ("::body", ["eins", "zwei"]),
    ],
)
def test_dataset_is_one_document_a_row(dataset: Path, suffix: str, texts: list[str]) -> None:
    read = list(read_texts(f"hf:{dataset}{suffix}"))
    assert read == [(f"{dataset}:{number}", text) for number, text in enumerate(texts)]


def test_stdlib_is_long_modules_that_training_never_sees() -> None:
    read = dict(read_texts("stdlib"))
    assert list(read) == [f"{name}.py" for name in HELD_OUT]
    assert min(map(len, read.values())) > 20_000
    assert "def dedent" not in "".join(read.values())  # textwrap is not among them
    training = training_texts()
    assert not set(read) & set(training)
    assert not set(read.values()) & set(training.values())
    assert "textwrap.py" in training
    assert all(path.is_file() for path in held_out_files())


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return str(folder / "empty")


def empty_file(folder: Path) -> str:
    (folder / "empty.txt").write_text(" \n\t\n", encoding="utf-8")
    return str(folder / "empty.txt")


def latin_1_file(folder: Path) -> str:
    (folder / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    return str(folder / "latin.txt")


def folder_with_an_empty_file(folder: Path) -> str:
    (folder / "a.txt").write_text("full", encoding="utf-8")
    (folder / "b.txt").write_text("", encoding="utf-8")
    return str(folder)


def jsonl_without_field(folder: Path) -> str:
    return str(write_jsonl(folder / "docs.jsonl", [{"text": "one"}]))


def jsonl_with_another_field(folder: Path) -> str:
    return f"{write_jsonl(folder / 'docs.jsonl', [{'text': 'one', 'id': 1}])}:body"


def jsonl_with_a_number(folder: Path) -> str:
    return f"{write_jsonl(folder / 'docs.jsonl', [{'id': 1}])}:id"


def jsonl_with_a_hole(folder: Path) -> str:
    return f"{write_jsonl(folder / 'docs.jsonl', [{'text': 'one'}, {'text': None}])}:text"


def jsonl_of_lists(folder: Path) -> str:
    return f"{write_jsonl(folder / 'docs.jsonl', [['one']])}:text"


def jsonl_damaged(folder: Path) -> str:
    (folder / "docs.jsonl").write_text('{"text": "one"}\n{"text": \n', encoding="utf-8")
    return f"{folder / 'docs.jsonl'}:text"


def jsonl_with_a_surrogate(folder: Path) -> str:
    return _jsonl(folder, '{"text": "\\ud800"}')


def jsonl_nested_deeply(folder: Path) -> str:
    return _jsonl(folder, '{"text": ' + "[" * 10**5)


def jsonl_with_many_digits(folder: Path) -> str:
    return _jsonl(folder, '{"text": "a", "id": ' + "1" * 5000 + "}")


def _jsonl(folder: Path, line: str) -> str:
    (folder / "docs.jsonl").write_text(line + "\n")
    return f"{folder / 'docs.jsonl'}:text"


def jsonl_missing(folder: Path) -> str:
    return f"{folder / 'none.jsonl'}:text"


def nothing(folder: Path) -> str:
    return str(folder / "none.txt")


def dataset_missing(folder: Path) -> str:
    return f"hf:{folder / 'none'}"


def dataset_of_the_hub(folder: Path) -> str:
    return "hf:nobody/nothing-of-that-name"


def dataset_empty(folder: Path) -> str:
    return f"hf:{empty_folder(folder)}"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (nothing, FileNotFoundError, "no such file or folder: .*none.txt"),
        (empty_folder, ValueError, "the folder holds no files"),
        (empty_file, ValueError, "empty.txt is empty"),
        (folder_with_an_empty_file, ValueError, "b.txt is empty"),
        (latin_1_file, ValueError, "latin.txt is not UTF-8 text"),
        (jsonl_without_field, ValueError, "say which field is the text, as in .*docs.jsonl:text"),
        (jsonl_with_another_field, ValueError, "line 1: the field 'body' holds no .*: text, id$"),
        (jsonl_with_a_number, ValueError, "line 1: the field 'id' holds no text"),
        (jsonl_with_a_hole, ValueError, "line 2: the field 'text' holds no text"),
        (jsonl_of_lists, ValueError, "line 1: the field 'text' holds no text"),
        (jsonl_damaged, ValueError, "line 2: not JSON"),
        (jsonl_with_a_surrogate, ValueError, "line 1: the field 'text' holds half of a character"),
        (jsonl_nested_deeply, ValueError, "line 1: nested too deeply"),
        (jsonl_with_many_digits, ValueError, "line 1: not JSON"),
        (jsonl_missing, FileNotFoundError, "no such file: .*none.jsonl"),
        (dataset_missing, FileNotFoundError, "hf:.*none"),
        (dataset_of_the_hub, FileNotFoundError, "hf:nobody/nothing-of-that-name"),
        (dataset_empty, FileNotFoundError, "hf:.*empty"),
    ],
)
def test_bad_source_is_refused(
    tmp_path: Path, source: Callable[[Path], str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        list(read_texts(source(tmp_path)))


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":validation", "validation"),
        (":test:title", "row 0: the field 'title' holds no text; fields: text, body"),
        (":test:text:more", "write hf:NAME:SPLIT:FIELD"),
    ],
)
def test_bad_split_or_field_of_a_dataset_is_refused(
    dataset: Path, suffix: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_texts(f"hf:{dataset}{suffix}"))


def test_a_pipe_is_refused_as_nobody_may_write_to_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        list(read_texts(str(tmp_path / "pipe")))
