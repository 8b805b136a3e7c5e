"""The README and the pages: their commands parse, their Python runs, their links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import ropex
import ropex.train
import ropex_eval
from ropex.checkpoints.loading import load_tokenizer
from ropex.cli import build_parser, main
from ropex.strategies.registry import registry
from tools import packages_picture

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
README = PAGES["README.md"]
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for name, text in PAGES.items()
}


def commands(text: str) -> list[list[str]]:
    """The words of every command in an indented block, after `ropex`."""
    joined = re.sub(r"\\\n *", "", text)
    lines = re.findall(r"^    .*?\bropex ((?!demo$)[a-z]+ .*?)(?:#.*)?$", joined, re.MULTILINE)
    return [[word for word in shlex.split(line) if word != "..."] for line in lines]


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction)
    )
    return dict(action.choices)


@pytest.mark.parametrize("name", PAGES)
def test_commands_are_parsed(name: str) -> None:
    parser = build_parser()
    for words in commands(PAGES[name]):
        parser.parse_args(words)


@pytest.mark.parametrize("name", PAGES)
def test_verbs_and_options_in_sentences_exist(name: str) -> None:
    known = verbs()
    for verb, rest in re.findall(r"`ropex\s+([a-z]+)\b([^`]*)`", PAGES[name]):
        assert verb in known
        options = set(re.findall(r"--[a-z-]+", rest))
        assert options <= known[verb]._option_string_actions.keys()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", PAGES[name]):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}


def test_every_page_is_in_the_index_and_in_the_readme() -> None:
    for name in PAGES.keys() - {"README.md", "CONTRIBUTING.md", "docs/README.md"}:
        assert f"]({name})" in README
        assert f"]({Path(name).name})" in PAGES["docs/README.md"]
    assert f"the {len(registry())} strategies" in README


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    assert len(README.splitlines()) <= 150
    found = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert found[:2] == [
        "pip install -c constraints.txt . && ropex demo",
        "pip install -c constraints.txt -e '.[test]' && python -m pytest",
    ]


@pytest.mark.parametrize("mark", ["suggest", "patch"])
def test_the_readme_shows_what_is_printed(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (words,) = (each for each in commands(README) if each[0] == mark)
    assert main(words) == 0
    printed = "".join(capsys.readouterr()).replace("weights cloned", "weights copied").splitlines()
    found = re.search(rf"<!-- {mark} -->\n```text\n(.*?)```\n<!-- /{mark} -->", README, re.DOTALL)
    assert found is not None
    assert set(found[1].splitlines()) - {"..."} <= set(printed)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_runs(
    name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "my-llama")
    (tmp_path / "book.txt").write_text("the cat ran under the big red house and " * 20, "utf-8")
    tokenizer = load_tokenizer(checkpoint)
    names: dict[str, Any] = {
        "model": ropex.load(checkpoint), "tokenizer": tokenizer,
        "input_ids": tokenizer("the cat ran", return_tensors="pt").input_ids, "data": "book.txt",
    }  # fmt: skip
    for block in BLOCKS[name]:
        exec(compile(block, name, "exec"), names)


def test_all_python_compiles() -> None:
    assert all(compile(block, name, "exec") for name, found in BLOCKS.items() for block in found)


@pytest.mark.parametrize("module", [ropex, ropex.train, ropex_eval], ids=lambda m: m.__name__)
def test_every_public_name_is_there_and_on_the_page(module: Any) -> None:
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name).__doc__
        assert re.search(rf"\b{name}\b", PAGES["docs/python.md"])


def test_every_file_that_a_page_names_is_there() -> None:
    for text in PAGES.values():
        for path in re.findall(r"`((?:ropex|eval|tests|tools|recipes|benchmarks)/[\w/.-]*)`", text):
            assert "X" in path or "NAME" in path or (ROOT / path).exists(), path


def test_the_picture_of_the_packages_is_current() -> None:
    assert packages_picture.svg() == packages_picture.PICTURE.read_text(encoding="utf-8")
