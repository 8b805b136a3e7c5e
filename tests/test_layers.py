"""Data flows one way: each module imports only what stands to its left."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = (
    "errors", "sizes", "files", "copies", "places", "members", "stdlib", "texts", "tokens",
    "headers", "limits", "rope", "strategies",
    "registry", "migration", "bounds", "engines", "advice", "pictures", "notations", "rope_config",
    "tables", "window", "reach", "routed", "attention", "install", "own_config", "softmax",
    "native", "sites", "models", "keys", "cache", "batching", "saving", "planning", "nesting",
    "record", "applying", "verify", "warn", "patching", "shipped", "loading", "head", "shape",
    "folding", "checkpoint", "storage", "same", "served", "export", "doctor", "page", "compat",
    "families", "locks", "train", "cli", "__main__",
)  # fmt: skip
NO_TRANSFORMERS = (
    "errors", "sizes", "files", "copies", "places", "members", "stdlib", "texts", "tokens", "rope",
    "strategies", "registry", "migration", "bounds", "engines", "advice", "pictures", "shipped",
)  # fmt: skip
MODULES = sorted((ROOT / "ropex").rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "ropex").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules that a file imports, but for what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    for name in imports(path):
        if name.startswith("ropex."):
            assert ORDER.index(name.split(".")[1]) <= ORDER.index(layer), name
        if layer in NO_TRANSFORMERS:
            assert not name.startswith(("transformers", "accelerate")), name
        if layer != "cli":
            assert not name.startswith("ropex_eval"), name


def test_every_module_has_its_place() -> None:
    assert {layer_of(path) for path in MODULES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ["ropex", "ropex.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.split()
    assert not {"torch", "transformers", "matplotlib", "datasets"} & set(output)


def test_importing_everything_changes_nothing_in_transformers() -> None:
    code = """
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
tables = (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS, ROPE_INIT_FUNCTIONS)
before = [dict(table) for table in tables]
import ropex.patching, ropex.checkpoint, ropex_eval.run
assert before == [dict(table) for table in tables]
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'eval'}", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
