"""`ropex eval` on a folder that is there already, and how it fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ropex_eval.scores.results import Results
from tests.support.shell import Shell, change_config, evaluation, write
from tests.support.tiny_eval import Watch, break_reading

UNREADABLE = "tiny: transformers cannot read this checkpoint: "


def test_strategies_are_always_compared_with_none(world: Shell) -> None:
    assert world.eval("-s", "yarn:4")[0] == 0
    assert list(Results.load(Path("out")).strategies) == ["none", "yarn:4"]
    assert world.eval("-s", "yarn:4", "-s", "none", "-o", "turned")[0] == 0
    assert list(Results.load(Path("turned")).strategies) == ["yarn:4", "none"]


def test_interrupted_eval_keeps_what_is_finished(
    world: Shell, measured: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        break_reading(patched, KeyboardInterrupt(), 2)
        status, out, err = world.eval("-s", "yarn:4")
    assert (status, out) == (130, "")
    assert err.endswith("ropex: interrupted; what is finished is kept\n")
    assert measured.take() == ["none"]
    assert world.eval("-s", "yarn:4")[0] == 0
    assert measured.take() == ["yarn:4"]


def test_eval_says_that_a_model_is_too_large_for_memory(
    world: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **others: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ropex.checkpoints.loading.load_model", full)
    message = world.refused(*evaluation("--device", "cpu")())
    assert "out of memory loading the model onto cpu; --dtype bfloat16 needs less" in message


# Weights, which are looked at last.


WEIGHTS = Path("tiny/model.safetensors")


def missing_weights() -> None:
    kept = {name: each.clone() for name, each in load_file(WEIGHTS).items() if "up_" not in name}
    save_file(kept, WEIGHTS, {"format": "pt"})


def damaged_old_weights() -> None:
    WEIGHTS.unlink()
    write("tiny/pytorch_model.bin", b"no weights" * 100)


def other_config(**changes: Any) -> Callable[[], None]:
    return lambda: change_config(Path("tiny"), **changes)


GPTQ = {"quant_method": "gptq", "bits": 4}
UNUSABLE: dict[str, tuple[Callable[[], object], str]] = {
    "quantised": (other_config(quantization_config=GPTQ), UNREADABLE),
    "no weights": (WEIGHTS.unlink, "model.safetensors"),
    "missing weights": (missing_weights, "tiny lacks 2 of the model's weights: model.layers.0.mlp"),
    "damaged weights": (lambda: WEIGHTS.write_bytes(WEIGHTS.read_bytes()[:-100]),
                        "tiny/model.safetensors holds "),
    "damaged old weights": (damaged_old_weights, "tiny"),
    "weights of other shape": (
        other_config(vocab_size=299),
        "tiny: lm_head.weight has a different shape than config.json asks for",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_weights_that_cannot_be_used_are_told_before_anything_is_measured(
    world: Shell, name: str
) -> None:
    damage, message = UNUSABLE[name]
    damage()
    assert message in world.refused(*evaluation()())
