"""`ropex eval` on a folder that is there already, and how it fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ropex_eval.measure.losses import Scorer
from ropex_eval.scores.results import Results
from tests.support.shell import Shell, evaluation, with_config, write
from tests.support.tiny_eval import Watch, break_reading

UNREADABLE = "tiny: transformers cannot read this checkpoint: "


def test_strategies_are_always_compared_with_none(world: Shell) -> None:
    assert world.eval("-s", "yarn:4")[0] == 0
    assert list(Results.load(Path("out")).strategies) == ["none", "yarn:4"]
    assert world.eval("-s", "yarn:4", "-s", "none", "-o", "turned")[0] == 0
    assert list(Results.load(Path("turned")).strategies) == ["yarn:4", "none"]


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("--trained-length", "16"), "model.trained_length"),
        (("--dtype", "bfloat16"), "model.dtype"),
    ],
)
def test_another_model_in_the_folder_is_refused_unless_forced(
    world: Shell, measured: Watch, change: tuple[str, str], differs: str
) -> None:
    world.eval("-s", "none")
    changed = [*evaluation("-s", "yarn:4", "--excerpts", "2")(), *change]
    message = world.refused(*changed)
    assert "out holds a run of a different model (" in message
    assert differs in message
    assert measured.take() == ["none"]
    assert world(*changed, "--force")[0] == 0
    assert "yarn:4" in measured.take()


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


CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError(CPU_IS_FULL), MemoryError()]
)
def test_eval_says_where_memory_ran_out_and_keeps_what_is_finished(
    world: Shell, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = Scorer.nll

    def small(self: Scorer, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        if ids.shape[1] == 48:
            raise error
        return real(self, ids, *others)

    monkeypatch.setattr(Scorer, "nll", small)
    status, out, err = world.eval("-s", "yarn:4")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        "ropex: error: out of memory at 48 tokens, read 48 at a time; smaller --lengths or --dtype "
        "bfloat16 need less, and what is finished is kept"
    )
    assert len(list(Path("out/nll").iterdir())) == 1


@pytest.mark.parametrize(("limit", "status"), [("1GiB", 0), ("40MiB", 0), ("1MiB", 2)])
def test_eval_stays_within_the_memory_that_is_allowed(
    world: Shell, limit: str, status: int
) -> None:
    found, _, err = world.eval("-s", "none", "--max-memory", limit)
    assert found == status
    assert ("and 1 MiB are allowed; give more (--max-memory)" in err) == (status == 2)
    assert len(err.splitlines()) < 8


def test_eval_says_that_a_model_is_too_large_for_memory(
    world: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **others: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ropex.checkpoints.loading.load_model", full)
    message = world.refused(*evaluation("--device", "cpu")())
    assert "out of memory loading the model onto cpu; --dtype bfloat16 needs less" in message


def test_eval_takes_no_other_error_for_a_lack_of_memory(
    world: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        world.eval("-s", "none")


# Weights, which are looked at last.


def no_weights() -> list[str]:
    Path("tiny/model.safetensors").unlink()
    return evaluation()()


def missing_weights() -> list[str]:
    path = Path("tiny/model.safetensors")
    kept = {name: tensor.clone() for name, tensor in load_file(path).items() if "up_" not in name}
    save_file(kept, path, {"format": "pt"})
    return evaluation()()


def damaged_old_weights() -> list[str]:
    Path("tiny/model.safetensors").unlink()
    write("tiny/pytorch_model.bin", b"no weights" * 100)
    return evaluation()()


def damaged_weights() -> list[str]:
    path = Path("tiny/model.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    return evaluation()()


UNUSABLE = {
    "quantised": (
        with_config(evaluation(), quantization_config={"quant_method": "gptq", "bits": 4}),
        UNREADABLE,
    ),
    "no weights": (no_weights, "model.safetensors"),
    "missing weights": (missing_weights, "tiny lacks 2 of the model's weights: model.layers.0.mlp"),
    "damaged weights": (damaged_weights, "tiny/model.safetensors holds "),
    "damaged old weights": (damaged_old_weights, "tiny"),
    "weights of other shape": (
        with_config(evaluation(), vocab_size=299),
        "tiny: lm_head.weight has a different shape than config.json asks for",
    ),
}


@pytest.mark.parametrize(
    ("prepare", "message"), [pytest.param(*case, id=name) for name, case in UNUSABLE.items()]
)
def test_weights_that_cannot_be_used_are_told_before_anything_is_measured(
    world: Shell, prepare: Callable[[], list[str]], message: str
) -> None:
    assert message in world.refused(*prepare())
