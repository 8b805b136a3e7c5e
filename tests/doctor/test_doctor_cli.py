"""`ropex doctor`: what it prints, and its exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from ropex.cli import doctor
from tests.support.doctor_configs import GOOD, NOTED, Config, mutated, scaled
from tests.support.paths import python

INTEGER = scaled(rope_type="linear", factor=4)
YARN: Config = {"rope_type": "yarn", "factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
LOST = {
    "missing": scaled(**YARN) | {"max_position_embeddings": 16384},
    "contradicting": scaled(**YARN, **{ORIGINAL: 4096})
    | {"max_position_embeddings": 12000, ORIGINAL: 2048},
    "above": scaled(**YARN, **{ORIGINAL: 32768}) | {"max_position_embeddings": 16384},
}


class Doctor:
    """The verb, on a model of its own."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capture = folder, capture

    def write(self, config: Config) -> None:
        (self.folder / "config.json").write_text(json.dumps(config))

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser()
        doctor.add_verbs(parser.add_subparsers())
        given = parser.parse_args(["doctor", *arguments])
        self.capture.readouterr()
        try:
            given.run(given)
        except SystemExit as left:
            return (int(left.code or 0), *self.capture.readouterr())
        return (0, *self.capture.readouterr())


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Doctor:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return Doctor(tmp_path / "model", capsys)


@pytest.mark.parametrize("config", [GOOD["Llama 3.1 8B"], GOOD["Phi 4 mini"]])
def test_clean(run: Doctor, config: Config) -> None:
    run.write(config)
    assert run("model") == (0, "model: ok\n", "")


def test_notes_do_not_fail(run: Doctor) -> None:
    run.write(NOTED["Ministral 3"])
    status, out, _ = run("model")
    assert (status, out.splitlines()[-1]) == (0, "model: ok")
    assert "note two-type-keys in text_config.rope_parameters: type and rope_type" in out


def test_findings_fail_and_are_grouped_by_file(run: Doctor) -> None:
    run.write(INTEGER)
    (run.folder / "pytorch_model.bin").write_bytes(b"x")
    status, out, err = run("model")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "config.json", "pytorch_model.bin", "model: 1 finding; --fix can fix 1 of them",
    ]  # fmt: skip
    assert lines[1] == (
        "  warning integer-factor in rope_scaling: factor is the integer 4: the linear type of "
        "vLLM and SGLang stops with an error. --fix: set rope_scaling.factor to 4.0. "
        "[vllm, sglang]"
    )


def test_fix_mends_once_and_says_where_the_old_file_is(run: Doctor) -> None:
    run.write(INTEGER)
    before = (run.folder / "config.json").read_bytes()
    status, out, err = run("model", "--fix")
    assert (status, out.splitlines()[-1]) == (0, "model: ok")
    assert out.startswith(
        "fixed integer-factor: config.json: rope_scaling: set rope_scaling.factor"
    )
    assert err == "the old file is kept as model/config.json.bak\n"
    assert (run.folder / "config.json.bak").read_bytes() == before
    assert run("model", "--fix") == (0, "model: ok\n", "")
    assert len(list(run.folder.iterdir())) == 2


def test_what_cannot_be_fixed_still_fails_and_says_what_to_do(run: Doctor) -> None:
    run.write(mutated("Qwen2.5 7B", rope_scaling={"type": "yarn", "factor": 4.0}))
    before = (run.folder / "config.json").read_bytes()
    status, out, _ = run("model", "--fix")
    assert status == 1
    assert "To do: give --trained-length with the tokens that the model was trained at" in out
    assert (run.folder / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", LOST)
def test_trained_length_that_is_stated_mends_what_nothing_implies(run: Doctor, name: str) -> None:
    run.write(LOST[name])
    assert run("model", "--fix")[0] == 1
    status, out, _ = run("model", "--fix", "--trained-length", "4k")
    assert (status, out.splitlines()[-1]) == (0, "model: ok")
    entry = json.loads((run.folder / "config.json").read_text())["rope_scaling"]
    assert entry[ORIGINAL] == 4096
    assert run("model") == (0, "model: ok\n", "")


def test_engine(run: Doctor) -> None:
    run.write(INTEGER)
    assert run("model", "--engine", "VLLM")[0] == 1
    assert run("model", "--engine", "llama.cpp") == (0, "model: ok\n", "")
    with pytest.raises(ValueError, match=r"unknown engine 'torch'; known: transformers5,"):
        run("model", "--engine", "torch")


@pytest.mark.parametrize("fix", [(), ("--fix",)])
def test_json_is_strict(run: Doctor, fix: tuple[str, ...]) -> None:
    run.write(scaled(rope_type="linear", factor=float("nan")) | {"max_position_embeddings": 4096.0})
    status, out, _ = run("model", "--json", *fix)

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    about = json.loads(out, parse_constant=refuse)
    assert status == 1
    assert about.keys() == {"findings", "fixed", "backups"}
    left = ["bad-number"] if fix else ["bad-number", "float-length"]
    assert [each["rule"] for each in about["findings"]] == left
    assert [each["rule"] for each in about["fixed"]] == (["float-length"] if fix else [])
    assert all(
        each.keys()
        == {"rule", "severity", "where", "message", "engines", "fix", "fixable", "edits"}
        for each in about["findings"] + about["fixed"]
    )


def test_demo_is_healthy_and_not_written_to(run: Doctor) -> None:
    assert run("demo") == (0, "demo: ok\n", "")
    with pytest.raises(FileNotFoundError, match="only files of your own are fixed"):
        run("demo", "--fix")


@pytest.mark.parametrize("module", ["ropex.doctor", "ropex.cli.doctor"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    found = python("-c", code, check=True).stdout.split()
    assert not {"torch", "transformers", "safetensors", "numpy"} & set(found)
