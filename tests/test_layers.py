"""Data flows one way: each package imports only from those that stand before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = ("errors", "sizes", "version", "rope", "files", "shipped")
ORDER = (
    *GROUND, "texts", "strategies", "config", "model", "attention", "patching", "checkpoints",
    "parity", "engines", "advice", "doctor", "train", "families",
    "scores", "study", "measure", "tasks", "running", "report", "training", "api", "cli",
)  # fmt: skip
ROOT_FILES = {"__init__", "__main__", "errors", "rope", "shipped", "sizes", "version"}
WITHOUT_TRANSFORMERS = {"texts", "strategies", "advice", "files"}
FACADE = ORDER.index("parity")  # from here on `import ropex` is allowed
FILES = {
    path.relative_to(base).with_suffix(""): path
    for base in (ROOT, ROOT / "eval")
    for path in sorted((base / ("ropex" if base == ROOT else "ropex_eval")).rglob("*.py"))
}
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}:{ROOT / 'eval'}", "PATH": "/usr/bin:/bin"}
MODULES = {
    ".".join(name.parts[:-1] if name.name == "__init__" else name.parts): path
    for name, path in FILES.items()
}


def imports(name: str) -> set[str]:
    """The modules of ropex that a module imports, for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else node.module for each in inner}
    return found


def package_of(name: str) -> str:
    return name.split(".")[1] if "." in name else name


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"ropex", "ropex.__main__", "ropex_eval"}))
def test_imports_point_one_way(name: str) -> None:
    package = package_of(name)
    for imported in sorted(imports(name)):
        if imported == "ropex":
            assert ORDER.index(package) >= FACADE, "the facade stands above"
        elif imported in MODULES:
            assert ORDER.index(package_of(imported)) <= ORDER.index(package), imported
        elif package in WITHOUT_TRANSFORMERS | {*GROUND}:
            assert not imported.startswith(("transformers", "accelerate")), imported


def test_no_circle() -> None:
    below = {name: imports(name) & set(MODULES) - {name} for name in MODULES}
    while leaves := {name for name, needs in below.items() if not needs}:
        below = {name: needs - leaves for name, needs in below.items() if name not in leaves}
    assert sorted(below) == []


def test_the_ground_floor_is_frozen() -> None:
    assert {path.stem for path in (ROOT / "ropex").glob("*.py")} == ROOT_FILES
    assert {package_of(name) for name in MODULES} <= {*ORDER, "ropex", "ropex_eval", "__main__"}


@pytest.mark.parametrize("module", ["ropex", "ropex.cli", "ropex_eval"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT,
    ).stdout.split()
    assert not {"torch", "transformers", "matplotlib", "datasets"} & set(output)


def test_importing_everything_changes_nothing_in_transformers() -> None:
    code = f"""
import importlib
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
tables = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS, ROPE_INIT_FUNCTIONS)
before = [dict(table) for table in tables]
for name in {sorted(set(MODULES) - {"ropex.__main__"})}:
    importlib.import_module(name)
assert before == [dict(table) for table in tables]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=ENVIRONMENT)
