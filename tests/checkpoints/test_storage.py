"""Models and adapters go with the strategy that they are used under."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import ropex
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.checkpoints.write import save_patched
from ropex.engines.wanted import read
from ropex.patching.record import Record
from tests.support.models import logits, tiny_model, tokens
from tests.support.written import write

IDS = tokens()

# Of peft, under transformers 5.


def with_adapter(model: Any) -> Any:
    """A LoRA adapter that changes something."""
    torch.manual_seed(1)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return wrapped.eval()


@pytest.mark.parametrize("text", ["yarn:4", "ntk:2+clip:2", "linear:4", "dynamic:4", "none"])
def test_a_written_checkpoint_says_how_it_was_made(folder: Path, tmp_path: Path, text: str) -> None:
    write(folder, tmp_path / "out", text)
    record = Record.read(tmp_path / "out")
    assert record is not None
    assert (record.strategy, record.trained_length, record.in_config) == (text, 32, True)
    assert record.target_length == {"none": 32, "ntk:2+clip:2": 64}.get(text, 128)
    assert set(record.versions) == {"ropex", "transformers", "torch"}
    loaded = ropex.load(tmp_path / "out")
    with ropex.patch(load_model(folder), text) as live:
        assert torch.equal(logits(loaded, IDS), logits(live.model, IDS))


@pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")
def test_a_second_patch_is_recorded_after_the_first(folder: Path, tmp_path: Path) -> None:
    for source, out, text in (("model", "one", "yarn:2"), ("one", "two", "linear:2")):
        write(tmp_path / source, tmp_path / out, text)
    record = Record.read(tmp_path / "two")
    assert record is not None
    assert record.strategies == ["yarn:2", "linear:2"]
    assert (record.trained_length, record.target_length) == (32, 128)


def test_save_pretrained_of_a_patched_model_writes_the_record(tmp_path: Path) -> None:
    model = tiny_model("llama")
    ropex.patch(model, "yarn:2")
    ropex.patch(model, "ntk:2")
    model.save_pretrained(tmp_path)
    record = Record.read(tmp_path)
    assert record is not None
    assert record.strategy == "yarn:2 then ntk:2"


@pytest.mark.parametrize("text", ["logn", "yarn:4+logn", "dynamic_yarn"])
def test_what_no_config_can_say_is_applied_after_loading(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    plain = logits(model, IDS)
    ropex.patch(model, text)
    live = logits(model, IDS)
    ropex.save(model, tmp_path)
    assert torch.equal(logits(model, IDS), live)
    assert torch.equal(logits(load_model(tmp_path), IDS), plain)
    assert torch.equal(logits(ropex.load(tmp_path), IDS), live)


@pytest.mark.parametrize("text", ["linear:2", "none"])
def test_no_strategy_is_put_on_one_that_no_config_says(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    ropex.patch(model, "yarn:4+logn")
    ropex.save(model, tmp_path / "saved")
    said = r"ropex\.json says yarn:4\+logn, which is applied after loading"
    patch = ropex.patch(load_skeleton(tmp_path / "saved"), text)
    with pytest.raises(ValueError, match=said):
        save_patched(tmp_path / "saved", patch, tmp_path / "out")
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "saved", text)
    assert not (tmp_path / "out").exists()
    assert read(tmp_path / "saved").refusal


@pytest.mark.parametrize("text", ["yarn:4", "yarn:4+logn"])
@pytest.mark.parametrize("before", [True, False])
def test_an_adapter_brings_the_patch_that_it_was_trained_under(
    folder: Path, tmp_path: Path, text: str, before: bool
) -> None:
    model = load_model(folder)
    if before:
        ropex.patch(model, text)
        wrapped = with_adapter(model)
    else:
        wrapped = with_adapter(model)
        ropex.patch(wrapped, text)
    live = logits(wrapped, IDS)
    ropex.save(wrapped, tmp_path / "adapter")
    loaded = ropex.load(folder, adapter=tmp_path / "adapter")
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded, IDS), live)
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert content["base_model_name_or_path"] == str(folder)
    assert torch.equal(logits(ropex.load(tmp_path / "adapter"), IDS), live)


def test_save_pretrained_of_a_patched_adapter_writes_the_record(
    folder: Path, tmp_path: Path
) -> None:
    wrapped = with_adapter(load_model(folder))
    ropex.patch(wrapped, "yarn:4+logn")
    wrapped.save_pretrained(tmp_path / "adapter")
    record = Record.read(tmp_path / "adapter")
    assert record is not None
    assert record.strategy == "yarn:4+logn"


def test_an_adapter_that_does_not_say_is_refused_until_it_is_told(
    folder: Path, tmp_path: Path
) -> None:
    wrapped = with_adapter(load_model(folder))
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds no ropex.json, so it does not say under which"):
        ropex.load(folder, adapter=tmp_path / "adapter")
    loaded = ropex.load(folder, "none", adapter=tmp_path / "adapter")
    assert torch.equal(logits(loaded, IDS), logits(wrapped, IDS))


@pytest.mark.parametrize("strategy", [None, "none"])
def test_an_adapter_that_is_not_there_is_told(folder: Path, strategy: str | None) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing holds no adapter_config\.json"):
        ropex.load(folder, strategy, adapter="nothing")


def test_another_base_model_is_noticed(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    ropex.patch(model, "yarn:4")
    ropex.save(with_adapter(model), tmp_path / "adapter")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["rope_theta"] = 5e5
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"other tables than those that ropex.json was"):
        ropex.load(folder, adapter=tmp_path / "adapter")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"strategy": 1}', "null"])
def test_a_damaged_record_is_told(folder: Path, text: str) -> None:
    (folder / "ropex.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"ropex.json is damaged"):
        ropex.load(folder)


def test_the_card_of_an_adapter_is_gone_on_from(folder: Path, tmp_path: Path) -> None:
    wrapped, out = with_adapter(load_model(folder)), tmp_path / "adapter"
    ropex.save(wrapped, out)
    with (out / "README.md").open("a", encoding="utf-8") as file:
        file.write("my notes")
    ropex.save(wrapped, out)
    assert "my notes" in (out / "README.md").read_text(encoding="utf-8")
    assert not list(out.glob(".*"))
