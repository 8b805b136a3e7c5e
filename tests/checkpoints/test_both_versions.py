"""What one version of transformers writes under a patch, the other loads to the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.checkpoints.loading import load_model
from ropex.config.notations import version_5
from ropex.families import tiny as families
from tests.support.models import TRAINED, logits, tiny_model, tokens
from tests.support.written import config_of, write

IDS = tokens()
VERSION_5 = version_5()


# Set where the other transformers is installed, to its Python.
OTHER = os.environ.get("ROPEX_OTHER_PYTHON")
_LOAD = """
import sys, torch
def tables(model):
    found = {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}
    return {tuple(each.tolist()) for name, each in found.items() if "original" not in name}
from pathlib import Path
from transformers import AutoModelForCausalLM
ids = torch.load(Path(sys.argv[1]) / "ids.pt")
for folder in sorted(Path(sys.argv[1]).glob("out-*")):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.save(model(ids, use_cache=False).logits, folder / "logits.pt")
    torch.save(tables(model), folder / "tables.pt")
"""
# Families with a table for each layer type, and what transformers 4 calls the bases of the two.
_LAYERED = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "olmo3": ("rope_theta", "rope_theta"),
}
_BY_LAYER = ("ntk:4", "theta:50000", "yarn:factor=2,truncate=false", "dynamic:length=256")
_TEXTS = (
    "none",
    "yarn:4",
    "linear:1.7",
    "ntk:4",
    "dynamic:4",
    "llama3:4",
    "linear:2+yarn:2",
    "clip:4",
)
_OTHERS = ("mistral", "qwen2", "qwen3", "gemma", "gpt_neox", "stablelm", "glm", "mixtral")
_SAVED = ("proportional", "clip:4", "yarn:4", "linear:1.7", "ntk:4", "linear:2+yarn:2")
_WAYS = ("written", "saved", "converted", "converted and saved")
_LISTS = {
    "max_position_embeddings": 4 * TRAINED,
    "original_max_position_embeddings": TRAINED,
    "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 7 + [1.25],
        "long_factor": [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 4.0]},
}  # fmt: skip
_CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    *(("llama", text, "written", {}) for text in _TEXTS),
    *((kind, "yarn:4", "written", {}) for kind in _OTHERS),
    *(("gpt_neox", "yarn:4", way, {"rotary_pct": 0.5}) for way in ("written", "saved")),
    *(("llama", text, "saved", {}) for text in _SAVED),
    ("llama", "none", "written", _LISTS),
    *((kind, text, way, {}) for kind in _LAYERED for text in _BY_LAYER for way in _WAYS),
]


def layered(kind: str, folder: Path, *, converted: bool) -> None:
    """Save a model whose layers rotate differently; converted, in the other version's notation."""
    shares = {"num_kv_shared_layers": 0} if kind == "gemma3n_text" else {}  # 4 wants their weights
    model = families.tiny_model(kind, max_position_embeddings=TRAINED, **shares)
    model.save_pretrained(folder)
    if not converted:
        return
    raw, (base, local) = config_of(folder), _LAYERED[kind]
    types = ("full_attention", "sliding_attention")
    if VERSION_5:
        entries = raw.pop("rope_parameters")
        raw |= {local: entries[types[1]]["rope_theta"], base: entries[types[0]]["rope_theta"]}
    else:
        bases = zip(types, (raw[base], raw[local]), strict=True)
        raw["rope_parameters"] = {
            key: {"rope_type": "default", "rope_theta": value} for key, value in bases
        }
        for key in {base, local, "rope_scaling"}:
            del raw[key]
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")


@pytest.fixture(scope="module")
def loaded_by_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case written here, and its logits computed by the other transformers."""
    if OTHER is None:
        pytest.skip("ROPEX_OTHER_PYTHON names no other transformers")
    assert Path(OTHER) != Path(sys.executable)
    folder = tmp_path_factory.mktemp("both")
    torch.save(IDS, folder / "ids.pt")
    for number, (kind, text, way, changes) in enumerate(_CASES):
        source, out = folder / f"model-{number}", folder / f"out-{number}"
        if kind in _LAYERED:
            layered(kind, source, converted="converted" in way)
        else:
            tiny_model(kind, **changes).save_pretrained(source)
        if "saved" not in way:
            write(source, out, text)
        else:
            model = load_model(source)
            ropex.patch(model, text)
            model.save_pretrained(out)
    subprocess.run([OTHER, "-c", _LOAD, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("number", "case"), list(enumerate(_CASES)), ids=str)
def test_the_other_version_of_transformers_loads_the_same(
    loaded_by_other: Path, number: int, case: tuple[str, str, str, dict[str, Any]]
) -> None:
    model, out = load_model(loaded_by_other / f"model-{number}"), loaded_by_other / f"out-{number}"
    with ropex.patch(model, case[1]):
        wanted, tables = logits(model, IDS), tables_of(model)
    if case[0] != "gemma3n_text":  # whose other arithmetic the two versions round differently
        assert torch.equal(torch.load(out / "logits.pt"), wanted)
    if case[0] in _LAYERED:
        assert torch.load(out / "tables.pt", weights_only=False) == tables


def tables_of(model: Any) -> set[tuple[float, ...]]:
    """The frequencies of a model, whatever the modules are called that hold them."""
    found = {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}
    return {tuple(each.tolist()) for name, each in found.items() if "original" not in name}
