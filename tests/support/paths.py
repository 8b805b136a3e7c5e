"""Where things lie, and fresh interpreters that import this tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
REAL = Path(os.environ.get("ROPEX_REAL", ROOT.parent / "shared" / "real"))
"""Checkpoints that were not made for ropex; most machines have none."""


def environment(**more: str) -> dict[str, str]:
    """The variables of a process: both source roots, no network, one thread."""
    roots = os.pathsep.join(str(ROOT / name) for name in (".", "eval"))
    fixed = {"PYTHONPATH": roots, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **fixed, **more}


def python(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter to its end; options are those of `subprocess.run`."""
    command = [sys.executable, *map(str, arguments)]
    common = {"env": environment(), "text": True, "check": False, "timeout": 300}
    if "stdout" not in options:
        common["capture_output"] = True
    return subprocess.run(command, **{**common, **options})
