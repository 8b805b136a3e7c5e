"""What engines made of written checkpoints when they were run, against what ropex says of them.

Measured with stories260K (heads of 8, trained at 512 tokens), per-token loss over 1200 tokens
against the live patched model: mlx-lm 0.32.2 from the folder, llama.cpp (as of llama-cpp-python
0.3.36) from the file that its converter makes of the folder. Exact is a mean difference of at most
2e-5 nats, another model one of at least 0.04.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ropex.cli import main
from ropex.engines import exports, unserved
from ropex.engines.wanted import read
from tests.support.models import tiny_model

# Read as written, by: both engines; mlx-lm alone; neither. Exports make all of them near or exact.
BOTH = ("none", "linear:4", "ntk:4", "yarn:4", "llama3:4")
MLX = (
    "yarn:factor=4,attention_factor=1", "yarn:factor=4,beta_fast=8", "resonance",
    "ntk_fixed:4", "ntk_mixed:4", "yarn_log:4", "giraffe_power:0.1", "clip:2", "drope",
    "proportional", "linear:2+resonance:10",
)  # fmt: skip
NEITHER = (
    "mrrope:4", "mrrope_uni:4", "yarn_pose:4", "temperature:1.07", "yarn:factor=4,truncate=false",
    "yarn:4+temperature:1.1",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measured") / "model"
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    settings = {"num_hidden_layers": 1, "max_position_embeddings": 512, **heads}
    tiny_model("llama", **settings).save_pretrained(path)
    return path


CASES = [
    *((text, []) for text in BOTH),
    *((text, ["llama.cpp"]) for text in MLX),
    *((text, ["llama.cpp", "mlx"]) for text in NEITHER),
]


@pytest.mark.parametrize(("text", "misread"), CASES)
def test_the_judge_says_what_was_measured(folder: Path, text: str, misread: list[str]) -> None:
    found = {each.engine: each for each in exports(read(folder, text).patched)}
    assert [name for name in ("llama.cpp", "mlx") if not found[name].as_written] == misread
    for name in ("llama.cpp", "mlx"):
        near = name == "mlx" and name in misread
        assert found[name].exactness == ("approximate" if near else "exact")
        assert (found[name].bound or 0) < 3e-4


@pytest.mark.parametrize(("text", "misread"), [CASES[2], CASES[5], CASES[-1]])
def test_patch_says_it_when_it_writes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, misread: list[str]
) -> None:
    out = tmp_path / "my out"
    assert main(["patch", str(folder), "-s", text, "-o", str(out)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "a different model" in line]
    named = lines[0].split(": ")[0].split(", ") if lines else []
    assert [name for name in named if name in ("llama.cpp", "mlx")] == misread
    assert all(f"`ropex export '{out}' --for " in line for line in lines)
    assert [each.engine for each in unserved(out)] == named


def test_what_no_export_is_known_to_help_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("cohere").save_pretrained(tmp_path / "model")
    arguments = ["patch", str(tmp_path / "model"), "-s", "ntk_mixed:4", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    lines = capsys.readouterr().err.splitlines()[-2:]
    assert lines[0].startswith("exllama: a different model as it stands; `ropex export ")
    assert lines[1].startswith("vllm, sglang, llama.cpp, mlx: not known to compute it; `ropex ")
    assert lines[1].endswith("--for ENGINE` says why")
