"""`ropex export` as a user of a shell sees it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ropex.engines import ENGINES
from tests.support.configs import write_config
from tests.support.shell import Shell

HOSTILE = 'it\'s a $HOME "model"; `id` & *'


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama.cpp", "tensorrt-llm"])
@pytest.mark.parametrize("text", ["yarn:4", "mrrope:4", "linear:1.7", "temperature:1.07"])
def test_commands_are_safe_in_a_shell(shell: Shell, engine: str, text: str) -> None:
    write_config(Path(HOSTILE))
    options = ("export", HOSTILE, "--for", engine, "-s", text)
    line = shell.done(*options).splitlines()[0]
    found = json.loads(shell.done(*options, "--json"))
    words = shlex.split(line)
    assert words[-len(found["flags"]) :] == found["flags"]
    before = words[: -len(found["flags"])]
    assert before[-1] == ("MODEL.gguf" if engine == "llama.cpp" else HOSTILE)
    for word in found["flags"]:
        if word.startswith("{"):
            assert json.loads(word)["rope_parameters"]["rope_theta"] == 10000.0


def test_the_answer_names_exactness_reason_and_source(shell: Shell) -> None:
    lines = shell.done("export", "model", "-s", "mrrope:4", "--for", "mlx").splitlines()
    assert lines[0] == "in config.json:"
    assert lines[-3].startswith("mlx: approximate, within 0.0006")
    assert lines[-2].startswith("mlx-lm reads a `longrope` list")
    assert lines[-1].startswith("source: ")


def test_what_needs_nothing_says_so(shell: Shell) -> None:
    out = shell.done("export", "model", "--for", "mlx")
    assert out.splitlines()[0] == "config.json stays as it is"
    assert shell.done("export", "model", "--for", "vllm").splitlines()[0] == (
        "vllm serve model --max-model-len 32"
    )


def test_all_engines_stand_in_one_table(shell: Shell) -> None:
    lines = shell.done("export", "model", "-s", "dynamic:4", "--for", "all").splitlines()
    assert [line.split()[0] for line in lines] == list(ENGINES)
    found = json.loads(shell.done("export", "model", "--for", "all", "--json"))
    assert [each["engine"] for each in found] == list(ENGINES)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_said_leaves_with_1(shell: Shell, engine: str) -> None:
    status, out, err = shell("export", "model", "-s", "logn", "--for", engine)
    assert (status, err) == (1, "")
    assert out.startswith(f"{engine}: not expressible\nlogn scales each query")
    status, out, _ = shell("export", "model", "-s", "logn", "--for", engine, "--json")
    assert status == 1
    assert json.loads(out)["exactness"] == "not expressible"


def test_mistakes_are_one_line(shell: Shell) -> None:
    assert "known: transformers5" in shell.refused("export", "model", "--for", "ollama")
    assert "did you mean 'yarn'" in shell.refused("export", "model", "--for", "mlx", "-s", "yran:4")
    assert "no such folder" in shell.refused("export", "./none", "--for", "mlx")
    assert "shorter" not in shell.refused("export", "model", "--for", "mlx", "-s", "yarn:0.5")
    config: dict[str, Any] = json.loads(Path("model/config.json").read_text(encoding="utf-8"))
    del config["max_position_embeddings"]
    Path("model/config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "--trained-length" in shell.refused("export", "model", "--for", "mlx")
    shell.done("export", "model", "--for", "mlx", "--trained-length", "32", "-s", "yarn:4")


def test_the_checkpoint_is_only_read(shell: Shell) -> None:
    before = {path.name: path.read_bytes() for path in Path("model").iterdir()}
    shell.done("export", "model", "-s", "yarn:4", "--for", "all")
    assert {path.name: path.read_bytes() for path in Path("model").iterdir()} == before
