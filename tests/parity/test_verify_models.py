"""`ropex verify`: two ways to one model are told apart from two models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.models import save_checkpoint, tiny_causal
from tests.support.shell import Shell


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "tiny")


@pytest.mark.parametrize("text", ["yarn:4", "ntk:2+clip:2", "llama3:4"])
def test_a_saved_checkpoint_is_the_live_model(shell: Shell, folder: Path, text: str) -> None:
    shell.done("patch", folder, "-s", text, "-o", "out")
    status, told, _ = shell("verify", folder, "out", "-s", text)
    assert status == 0
    lines = told.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("ok  ") for line in lines)
    assert max(float(line.rpartition(": ")[2]) for line in lines) < 1e-20  # a pair that stands


@pytest.mark.parametrize("live", [("-s", "linear:4"), ("-s", "yarn:8"), ()])
def test_another_model_is_told(shell: Shell, folder: Path, live: tuple[str, ...]) -> None:
    shell.done("patch", folder, "-s", "yarn:4", "-o", "out")
    status, told, _ = shell("verify", folder, "out", *live)
    assert status == 1
    assert "FAIL  cos and sin of model.rotary_emb" in told
    assert "FAIL  logits at positions up to the target" in told


def test_a_window_that_was_lifted_is_lifted_here_too(shell: Shell, tmp_path: Path) -> None:
    tiny_causal("mistral", sliding_window=40).save_pretrained(tmp_path / "model")
    how = ("-s", "yarn:4", "--lift-sliding-window")
    shell.done("patch", "model", *how, "-o", "out")
    told = shell.done("verify", "model", "out", *how).splitlines()
    assert max(float(line.rpartition(": ")[2]) for line in told) < 1e-20
    with pytest.warns(UserWarning, match="only the last 40 tokens"):
        assert shell("verify", "model", "out", "-s", "yarn:4")[0] == 1


def test_other_weights_are_told(shell: Shell, folder: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1)
    status, told, _ = shell("verify", folder, other)
    assert status == 1
    assert [line[:4] for line in told.splitlines()] == ["ok  ", "FAIL", "FAIL", "FAIL"]


@pytest.mark.parametrize("extra", [(), ("out", "--url", "http://127.0.0.1:9")])
def test_one_thing_to_compare_with_is_named(
    shell: Shell, folder: Path, extra: tuple[str, ...]
) -> None:
    assert "one of the two" in shell.refused("verify", folder, *extra)
