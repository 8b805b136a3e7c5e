"""Texts: where they come from, and what is refused."""

from __future__ import annotations

import json
import os
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
        ("", ["one", "two"]), (":test", ["one", "two"]), (":test:body", ["eins", "zwei"]),
        (":train", ["training"]), ("@default:train", ["training"]), ("::body", ["eins", "zwei"]),
    ],
)  # fmt: skip
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


# A source below a folder with these files, and why it is refused.
BAD: dict[str, tuple[str, dict[str, bytes | str], str]] = {
    "nothing": ("none.txt", {}, "no such file or folder: .*none.txt"),
    "empty folder": ("", {}, "the folder holds no files"),
    "empty file": ("empty.txt", {"empty.txt": " \n\t\n"}, "empty.txt is empty"),
    "an empty file of two": ("", {"a.txt": "full", "b.txt": ""}, "b.txt is empty"),
    "Latin 1": ("l.txt", {"l.txt": "Grüße".encode("latin-1")}, "l.txt is not UTF-8 text"),
    "no field": ("d.jsonl", {"d.jsonl": '{"text": "one"}'},
                 "say which field is the text, as in .*d.jsonl:text"),
    "another field": ("d.jsonl:body", {"d.jsonl": '{"text": "one", "id": 1}'},
                      "line 1: the field 'body' holds no .*: text, id$"),
    "a number": ("d.jsonl:id", {"d.jsonl": '{"id": 1}'}, "line 1: the field 'id' holds no text"),
    "a hole": ("d.jsonl:text", {"d.jsonl": '{"text": "one"}\n{"text": null}'},
               "line 2: the field 'text' holds no text"),
    "lists": ("d.jsonl:text", {"d.jsonl": '["one"]'}, "line 1: the field 'text' holds no text"),
    "damage": ("d.jsonl:text", {"d.jsonl": '{"text": "one"}\n{"text": \n'}, "line 2: not JSON"),
    "half a character": ("d.jsonl:text", {"d.jsonl": '{"text": "\\ud800"}'},
                         "line 1: the field 'text' holds half of a character"),
    "deep": ("d.jsonl:text", {"d.jsonl": '{"text": ' + "[" * 10**5}, "line 1: nested too deeply"),
    "many digits": ("d.jsonl:text", {"d.jsonl": '{"text": "a", "id": ' + "1" * 5000 + "}"},
                    "line 1: not JSON"),
    "no such JSONL": ("none.jsonl:text", {}, "no such file: .*none.jsonl"),
    "no such data set": ("hf:none", {}, "hf:.*none"),
    "empty data set": ("hf:", {}, "hf:.*texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_source_is_refused(tmp_path: Path, name: str) -> None:
    source, files, message = BAD[name]
    folder = tmp_path / "texts"
    folder.mkdir()
    for file, content in files.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / file).write_bytes(raw)
    _, kind, below = source.rpartition("hf:")
    missing = kind or "no such" in message
    with pytest.raises(FileNotFoundError if missing else ValueError, match=message):
        list(read_texts(f"{kind}{folder / below}"))


def test_a_data_set_that_the_hub_does_not_have_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="hf:nobody/nothing-of-that-name"):
        list(read_texts("hf:nobody/nothing-of-that-name"))


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
