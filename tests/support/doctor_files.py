"""Folders for the doctor, and the rules that it finds broken in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ropex.doctor import diagnose

ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "factor": 16.0, ORIGINAL: 4096}
RECORD = {
    "strategy": "yarn:4", "trained_length": 4096, "target_length": 16384,
    "inv_freq_sha256": "ab" * 32, "versions": {"ropex": "1"},
}  # fmt: skip


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (folder / f"{name}.json").write_text(text)
    return folder


def rules(path: Path) -> list[str]:
    return [finding.rule for finding in diagnose(path)]
