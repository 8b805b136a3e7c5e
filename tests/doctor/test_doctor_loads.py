"""What transformers loads before `doctor --fix`, it loads after, and the entry is in use then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from ropex.config.notations import version_5
from ropex.doctor import Checkpoint, Edit, Problem, Rule, diagnosis, examine, repair, repaired
from ropex.doctor.loads import why_not

TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16,
}  # fmt: skip
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
LAYERED = ("gemma3_text", "olmo3")


def write(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY | config))
    return folder


def fastest(folder: Path) -> set[float]:
    """The first frequency of each table, which is 1 where nothing is scaled."""
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    tables = [b for name, b in model.named_buffers() if name.endswith("inv_freq")]
    return {float(table[0]) for table in tables}


@pytest.mark.parametrize("kind", LAYERED)
@pytest.mark.parametrize(
    "old", [{}, {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}]
)
def test_entry_for_all_layers_is_nested_and_used(
    tmp_path: Path, kind: str, old: dict[str, Any]
) -> None:
    folder = write(tmp_path / "model", model_type=kind, rope_parameters=LINEAR, **old)
    assert fastest(folder) == {1.0}
    done = repair(folder)
    if old.get("rope_scaling", 0) is None:  # transformers 4 is told that nothing is scaled
        assert [finding.rule for finding in done.left] == ["ignored-entry"]
        assert done.backups == ()
    else:
        assert {finding.rule for finding in done.mended} == {"ignored-entry", "one-notation"}
        assert fastest(folder) == {1.0, 0.125}


@pytest.mark.parametrize("kind", LAYERED)
def test_entry_for_all_layers_beside_the_older_notation_loads_again(
    tmp_path: Path, kind: str
) -> None:
    older = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6}
    folder = write(tmp_path / "model", model_type=kind, rope_parameters=LINEAR, **older)
    repair(folder)
    assert fastest(folder) == {1.0, 0.125}


def test_ignored_keys_beside_layer_types_are_told_and_left() -> None:
    """As transformers 5 saves a config that had one entry for all."""
    layers = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    config = TINY | {"model_type": "gemma3_text", "rope_parameters": LINEAR | layers}
    [finding] = examine(Checkpoint({"config.json": config}))
    assert (finding.rule, finding.fixable) == ("ignored-entry", False)


@pytest.mark.skipif(not version_5(), reason="transformers 4 does not know the family")
def test_families_that_stop_at_one_entry_do_so() -> None:
    config = TINY | {"model_type": "gemma4_text", "rope_parameters": LINEAR}
    assert "full_attention" in str(why_not(config))
    [finding] = examine(Checkpoint({"config.json": config}))
    assert (finding.rule, finding.fixable) == ("ignored-entry", False)
    assert "stops" in finding.message


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_entries_by_layer_of_a_family_with_one_are_told(kind: str) -> None:
    layers = {"full_attention": LINEAR, "sliding_attention": LINEAR}
    config = {"model_type": kind, "rope_parameters": layers}
    after, mended = repaired(Checkpoint({"config.json": config}))
    assert "layers-of-one" in {finding.rule for finding in mended}
    assert after.documents["config.json"]["rope_parameters"] == LINEAR
    [finding, *_] = examine(Checkpoint({"config.json": config | {
        "rope_parameters": layers | {"sliding_attention": LOCAL}
    }}))  # fmt: skip
    assert (finding.rule, finding.fixable) == ("layers-of-one", False)


def test_fixes_that_would_keep_a_model_from_loading_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(checkpoint: Checkpoint) -> Any:
        """Heads are text."""
        if checkpoint.documents["config.json"]["num_attention_heads"] == 4:
            edit = Edit("config.json", ("num_attention_heads",), "four")
            yield Problem("config.json", "four is a word", (edit,))

    monkeypatch.setattr(diagnosis, "RULES", (Rule("a-rule", "error", ("vllm",), check),))
    folder = write(tmp_path / "model", model_type="llama")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"would not once a-rule are fixed .* nothing was changed"):
        repair(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"config.json": before}


def test_a_huge_model_is_tried_at_once() -> None:
    huge = TINY | {"model_type": "llama", "num_hidden_layers": 10**8, "vocab_size": 2 * 10**9}
    assert why_not({key: value for key, value in huge.items() if key != "layer_types"}) is None
    assert torch.get_default_device().type == "cpu"
    assert "KeyError" in str(why_not({}))
