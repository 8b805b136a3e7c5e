"""The house: its floors, from the ground up, and what keeps them apart."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (ROOT, ROOT / "eval")
# A package imports from itself and from floors below its own, type-checking imports included.
FLOORS = """
    errors sizes version positions
    rope files shipped
    texts strategies
    config
    model
    attention
    patching
    checkpoints
    ropex
    parity
    engines
    advice doctor train families
    scores
    study
    measure
    tasks
    running
    report
    training
    api
    ropex_eval
    cli
    __main__
"""  # `ropex` and `ropex_eval` are the public names, which code above may import
FLOOR = {name: number for number, line in enumerate(FLOORS.split("\n")) for name in line.split()}
ROOT_FILES = {
    "ropex": {"__init__", "__main__", "errors", "positions", "rope", "shipped", "sizes", "version"},
    "ropex_eval": {"__init__", "api"},
}
WITHOUT_TRANSFORMERS = {*FLOORS.split("\n")[1].split(), "texts", "strategies", "advice"}
# How transformers chooses what computes attention, and its masks.
ATTENTION_TABLES = ("ALL_ATTENTION", "ALL_MASK_ATTENTION", "AttentionInterface", "MaskInterface")
MODULES = {
    ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
    for source in SOURCES
    for path in sorted(source.glob("ropex*/**/*.py"))
}


@functools.cache
def imports(name: str) -> frozenset[str]:
    """What a module imports, wherever it does: names of ropex's modules, and of other packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in MODULES else node.module for each in inner}
    return frozenset(found)


def package_of(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def test_imports_point_down() -> None:
    arrows = [(name, each) for name in MODULES for each in imports(name) & MODULES.keys()]
    assert not [
        f"{name} -> {each}"
        for name, each in arrows
        if package_of(name) != package_of(each)
        and FLOOR[package_of(name)] <= FLOOR[package_of(each)]
    ]


def test_no_circle() -> None:
    below = {name: imports(name) & MODULES.keys() - {name} for name in MODULES}
    loose = {""}
    while loose:  # take away what imports nothing, and what nothing imports
        wanted = set().union(*below.values())
        loose = {name for name, needs in below.items() if not needs or name not in wanted}
        below = {name: needs - loose for name, needs in below.items() if name not in loose}
    assert below == {}


def test_nothing_else_stands_at_the_roots() -> None:
    for root, files in ROOT_FILES.items():
        here = [name for name in MODULES if name.startswith(f"{root}.")]
        assert {MODULES[name].stem for name in here if name.count(".") == 1} <= {*files}
        public = getattr(importlib.import_module(root), "__all__", ())
        shadowed = {f"{root}.{name}" for name in public} & MODULES.keys()
        assert not shadowed, "a package named after a public function"


def test_what_is_read_without_a_model_needs_no_transformers() -> None:
    heavy = ("transformers", "accelerate")
    assert not [
        name
        for name in MODULES
        if package_of(name) in WITHOUT_TRANSFORMERS
        if any(each.startswith(heavy) for each in imports(name))
    ]


def test_attention_functions_are_chosen_in_one_package() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
    using = [name for name, text in texts.items() if any(t in text for t in ATTENTION_TABLES)]
    assert {package_of(name) for name in using} == {"attention"}


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout


@pytest.mark.parametrize("module", ["ropex", "ropex.cli", "ropex_eval"])
def test_importing_is_light(module: str) -> None:
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert not {"torch", "transformers", "matplotlib", "datasets"} & {*loaded}


def test_importing_everything_changes_nothing_in_transformers() -> None:
    run(f"""
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
""")
