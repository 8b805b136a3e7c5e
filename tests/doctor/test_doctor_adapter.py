"""Adapters: the record beside them, and the base model that they name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ropex.doctor import diagnose
from ropex.patching.record import Record
from tests.support.doctor_configs import GOOD, scaled
from tests.support.doctor_files import RECORD, YARN, rules, write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ["unrecorded-adapter"]),
        ({"ropex": RECORD}, []),
        ({"ropex": RECORD | {"trained_length": "4096"}}, ["broken-record"]),
        ({"ropex": {}}, ["broken-record"]),
        ({"ropex": RECORD | {"trained_length": 8192}}, ["other-base"]),
        ({"ropex": RECORD | {"target_length": 4096, "trained_length": 512}}, []),
    ],
)
def test_adapter(tmp_path: Path, files: Any, expected: list[str]) -> None:
    write(tmp_path / "base", config=GOOD["Llama 2 7B"])
    adapter = {"base_model_name_or_path": "../base", "peft_type": "LORA"}
    assert rules(write(tmp_path / "adapter", adapter_config=adapter, **files)) == expected


def test_adapter_of_llama_31_is_not_told_of_its_own_scaling(tmp_path: Path) -> None:
    write(tmp_path / "base", config=GOOD["Llama 3.1 8B"])
    record = RECORD | {"trained_length": 131072, "target_length": 262144}
    adapter = {"base_model_name_or_path": str(tmp_path / "base")}
    assert rules(write(tmp_path / "adapter", adapter_config=adapter, ropex=record)) == []


def test_adapter_of_a_base_that_is_scaled_already(tmp_path: Path) -> None:
    write(tmp_path / "base", config=scaled(**YARN))
    adapter = {"base_model_name_or_path": str(tmp_path / "base")}
    folder = write(tmp_path / "adapter", adapter_config=adapter, ropex=RECORD)
    assert [(each.rule, each.severity) for each in diagnose(folder)] == [("other-base", "note")]


@pytest.mark.parametrize("name", ["meta-llama/Llama-2-7b", "", 5, None, "\0", "x" * 9999])
def test_adapter_of_another_base_reads_no_other_file(tmp_path: Path, name: Any) -> None:
    folder = write(tmp_path / "a", adapter_config={"base_model_name_or_path": name}, ropex=RECORD)
    assert rules(folder) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"strategy":' * 10**5,
        json.dumps(RECORD | {"trained_length": "x"}),
        json.dumps(RECORD | {"target_length": 10**400}),
        json.dumps(RECORD).replace("4096", "4" * 5000, 1),
    ],
    ids=["deep", "text", "400 digits", "5000 digits"],
)
def test_record_that_nobody_wrote_is_refused_where_it_is_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "ropex.json").write_text(text)
    with pytest.raises(ValueError, match=r"ropex\.json is damaged"):
        Record.read(tmp_path)
