"""The README says what the program does."""

from __future__ import annotations

import re

import pytest

from ropex.cli import main
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def between(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n(.*?)<!-- /{mark} -->", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_strategy_table_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "--markdown"]) == 0
    assert between("strategies") == capsys.readouterr().out


def test_the_two_commands_stand_at_the_top() -> None:
    commands = [line.strip() for line in README.splitlines() if line.startswith("    ")]
    assert commands[:2] == [
        "pip install -c constraints.txt . && ropex demo",
        "pip install -c constraints.txt -e '.[test]' && python -m pytest",
    ]


@pytest.mark.parametrize("mark", ["demo", "passkey", "bench"])
def test_measured_parts_are_filled_in(mark: str) -> None:
    assert len(between(mark).splitlines()) > 4


def test_every_file_that_it_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
