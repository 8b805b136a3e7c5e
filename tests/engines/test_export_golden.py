"""What is exported for each method and engine, word for word but for the reasons.

In the file an export without `exactness` is exact, and the name of an engine stands for what that
engine has there.
`python -m tests.engines.test_export_golden` writes the file anew; `test_export_readings.py` says
whether that is right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ropex.engines import ENGINES, Export, exports
from ropex.engines.wanted import read
from tests.support import paths
from tests.support.cases import BY_LENGTH, QUERY, STATIC
from tests.support.configs import write_config

GOLDEN = paths.GOLDEN / "exports.json"
# One of each kind of method: what is particular to it stands in full.
METHODS = (
    "none",
    "linear:4",
    "linear:1.7",
    "ntk:4",
    "dynamic",
    "dynamic:4",
    "yarn:4",
    "yarn:factor=3,beta_fast=16,truncate=false",
    "yarn:factor=4,attention_factor=1.25",
    "llama3:4",
    "ntk_mixed:4",
    "mrrope:4",
    "linear:2+temperature:1.1",
    "longrope:factor=4,long_factor=1/1/1.5/2/2.5/3/4/4",
    "logn",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("golden") / "model")


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def described(found: Export) -> dict[str, Any]:
    """An export as the file has it: what is empty is left out, and that it is exact."""
    full = {
        "exactness": "" if found.exactness == "exact" else found.exactness,
        "bound": found.bound,
        "flags": list(found.flags),
        "config": found.config,
        "metadata": found.metadata,
        "tensors": found.tensors,
    }
    return {key: value for key, value in full.items() if value}


def verdicts(folder: Path, text: str) -> str:
    """What engines make of the checkpoint that `ropex patch` would write, with the bounds."""
    found = exports(read(folder, text).patched)
    return ", ".join(e.verdict + (f" {e.bound:.1e}" if e.bound else "") for e in found)


def close(found: Any, wanted: Any) -> bool:
    """Whether two values are alike, numbers to the accuracy that versions of torch keep."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[k], wanted[k]) for k in wanted)
    if isinstance(wanted, list):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(close(a, b) for a, b in pairs)
    if isinstance(wanted, float) or isinstance(found, float):
        return bool(found == pytest.approx(wanted, rel=1e-6)) and type(found) is type(wanted)
    if isinstance(wanted, str) and wanted.startswith("{"):
        return close(json.loads(found), json.loads(wanted))
    return bool(found == wanted)


@pytest.mark.parametrize("text", METHODS)
def test_exports_are_the_golden_ones(folder: Path, golden: Any, text: str) -> None:
    by_engine = golden["methods"][text]
    for found in exports(read(folder, text)):
        wanted = {
            key: by_engine[part][key] if part in ENGINES else part
            for key, part in by_engine[found.engine].items()
        }
        assert close(described(found), wanted), (found, wanted)


@pytest.mark.parametrize("text", [*STATIC, *BY_LENGTH, *QUERY])
def test_verdicts_are_the_golden_ones(folder: Path, golden: Any, text: str) -> None:
    assert verdicts(folder, text) == golden["verdicts"][text]


def test_the_file_is_complete(golden: Any) -> None:
    assert tuple(golden["methods"]) == METHODS
    assert golden["engines"] == list(ENGINES)
    assert all(list(by_engine) == list(ENGINES) for by_engine in golden["methods"].values())


def shared(found: list[Export]) -> dict[str, dict[str, Any]]:
    """Exports by engine; a part that an earlier engine has is that engine's name."""
    first: dict[str, str] = {}
    by_engine: dict[str, dict[str, Any]] = {}
    for each in found:
        by_engine[each.engine] = parts = described(each)
        for key, part in parts.items():
            name = first.setdefault(json.dumps([key, part], sort_keys=True), each.engine)
            if isinstance(part, dict) and name != each.engine:
                parts[key] = name
    return by_engine


def fitted(value: Any, depth: int = 0) -> str:
    """JSON with a line for each export if it fits, else for each part, else for each entry."""
    line = json.dumps(value)
    if not isinstance(value, dict) or len(line) <= 140 or depth == 5:
        return line
    inner = "\n" + " " * (depth + 1)
    parts = (f"{json.dumps(key)}: {fitted(part, depth + 1)}" for key, part in value.items())
    return "{" + inner + f",{inner}".join(parts) + inner[:-1] + "}"


def _write(folder: Path) -> None:
    methods = {text: shared(exports(read(folder, text))) for text in METHODS}
    words = {text: verdicts(folder, text) for text in (*STATIC, *BY_LENGTH, *QUERY)}
    content = {"engines": list(ENGINES), "verdicts": words, "methods": methods}
    GOLDEN.write_text(fitted(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        _write(write_config(Path(temporary)))
