"""Clause 7: a saved checkpoint computes what the patched model does, without ropex."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

import ropex
from ropex.checkpoints import copies
from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.checkpoints.write import save_patched
from ropex.config.notations import misread_by_4, version_5
from ropex.families import tiny as families
from ropex.patching.saving import both_notations
from tests.support.cases import BY_LENGTH_IN_CONFIG, STATIC
from tests.support.models import (
    TRAINED,
    logits,
    plain,
    rope_settings,
    tiny_config,
    tiny_model,
    tokens,
)
from tests.support.tiny_eval import tree
from tests.support.written import config_of, write

IDS = tokens()
VERSION_5 = version_5()
SAVED = (*STATIC, *BY_LENGTH_IN_CONFIG)


@pytest.fixture
def folder(folder: Path) -> Path:
    """A checkpoint whose tokenizer has a limit."""
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 32}', encoding="utf-8")
    return folder


def both_notations_say_the_same(folder: Path, out: Path, text: str) -> None:
    config = config_of(out)
    entry = dict(config["rope_parameters"])
    assert entry.pop("rope_theta") == config["rope_theta"]
    unscaled = entry["rope_type"] == "default"
    assert config["rope_scaling"] == (None if unscaled else entry)
    assert isinstance(config["max_position_embeddings"], int)
    assert isinstance(config["rope_theta"], float)
    target = ropex.strategy(text).target_length(ropex.rope_of(load_skeleton(folder)))
    stays = entry["rope_type"] in ("linear", "dynamic")  # engines multiply these by the factor
    assert config["max_position_embeddings"] == (TRAINED if stays else target)
    unchanged = set(config_of(folder)) - {
        "rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings",
    }  # fmt: skip
    assert all(config[key] == config_of(folder)[key] for key in unchanged)


@pytest.mark.parametrize("text", SAVED)
def test_a_written_checkpoint_loads_to_the_patched_model(
    folder: Path, tmp_path: Path, text: str
) -> None:
    write(folder, tmp_path / "out", text)
    loaded = plain(tmp_path / "out")
    model = load_model(folder)
    with ropex.patch(model, text):
        live = logits(model, IDS)
    assert not torch.equal(logits(model, IDS), live)
    assert torch.equal(logits(loaded, IDS), live)
    both_notations_say_the_same(folder, tmp_path / "out", text)


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", "linear:2+ntk:2"])
def test_other_families_load_alike(tmp_path: Path, kind: str, text: str) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "model")
    write(tmp_path / "model", tmp_path / "out", text)
    loaded = plain(tmp_path / "out")
    with ropex.patch(model, text):
        assert torch.equal(logits(loaded, IDS), logits(model, IDS))


@pytest.mark.parametrize("kind", ["llama", "gemma4_text", "lfm3"])
def test_what_stands_still_is_written_in_finite_numbers(tmp_path: Path, kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"{kind} came with transformers 5")
    model = families.tiny_model(kind)
    ropex.patch(model, "drope")
    model.save_pretrained(tmp_path)
    content = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert json.loads(content, parse_constant=pytest.fail)["max_position_embeddings"]
    assert torch.equal(logits(ropex.load(tmp_path), IDS[:, :24]), logits(model, IDS[:, :24]))


@pytest.mark.parametrize("text", SAVED)
def test_save_pretrained_of_a_patched_model_saves_the_patch(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    ropex.patch(model, text)
    model.save_pretrained(tmp_path)
    loaded = plain(tmp_path)
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))


@pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")
def test_a_second_patch_starts_from_the_first(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "one", "yarn:2")
    write(tmp_path / "one", tmp_path / "two", "linear:2")
    loaded = plain(tmp_path / "two")
    model = load_model(folder)
    with ropex.patch(model, "yarn:2"), ropex.patch(model, "linear:2"):
        assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_none_writes_both_notations_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    write(folder, tmp_path / "out", "none")
    loaded = plain(tmp_path / "out")
    assert torch.equal(logits(loaded, IDS), logits(load_model(folder), IDS))
    assert {"rope_parameters", "rope_theta", "rope_scaling"} <= set(config_of(tmp_path / "out"))


def test_the_source_is_untouched_and_the_tokenizer_passes_the_length(
    folder: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write(folder, tmp_path / "out", "yarn:4")
    limit = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert limit == {"model_max_length": 128}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_existing_folder_is_replaced_only_when_told_to(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(folder, out, "yarn:4")
    before = config_of(out)
    with pytest.raises(FileExistsError, match="--force replaces it"):
        write(folder, out, "linear:4")
    assert config_of(out) == before
    write(folder, out, "linear:4", force=True)
    assert config_of(out) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_force_does_not_replace_what_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not a checkpoint"):
        write(folder, tmp_path / "home", "yarn:4", force=True)
    with pytest.raises(FileExistsError, match="that is read"):
        write(folder, folder, "yarn:4", force=True)
    for out in (tmp_path, folder / "inside"):
        with pytest.raises(FileExistsError, match="that is read"):
            write(folder, out, "yarn:4", force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="link is a link to nothing; remove it"):
        write(folder, tmp_path / "link", "yarn:4", force=True)
    assert (tmp_path / "home" / "thesis.tex").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("text", ["logn", "yarn:4+logn", "dynamic:2+logn", "dynamic_yarn"])
def test_what_no_config_can_say_is_not_saved(folder: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="cannot be written into a config"):
        write(folder, tmp_path / "out", text)
    assert not (tmp_path / "out").exists()
    model = load_model(folder)
    with ropex.patch(model, text) as patch:
        for part in (model, model.model):
            with pytest.raises(ValueError, match="cannot be written into a config"):
                part.save_pretrained(tmp_path / "out")
        with patch.suspended():
            model.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("text", ["proportional", "yarn:4", "clip:2"])
def test_what_a_family_does_not_read_is_not_called_saved(tmp_path: Path, text: str) -> None:
    model = tiny_model("nemotron", head_dim=16)  # transformers 4 ignores any scaling of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if not ropex.patch(model, text).in_config:
            return
        model.save_pretrained(tmp_path)
    loaded = plain(tmp_path)
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_a_scaling_that_transformers_4_ignores_is_a_warning() -> None:
    config = tiny_config("nemotron", **rope_settings(rope_type="linear", factor=2.0))
    with pytest.warns(UserWarning, match="transformers 4 ignores any scaling of nemotron"):
        both_notations({}, config)


@pytest.mark.parametrize("kind", ["olmo3", "modernbert-decoder"])
@pytest.mark.parametrize("local", [1e4, 2e4])
def test_two_bases_where_transformers_4_has_one_are_a_warning(kind: str, local: float) -> None:
    entries = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
    }
    said = f"has one base for all layers of {kind}"
    assert misread_by_4(entries, kind) == (None if local == 1e4 else said)


@pytest.mark.parametrize(
    ("kind", "rope_type", "said"),
    [
        ("llama4_text", "yarn", "cannot build llama4_text with this yarn entry"),
        ("llama4_text", "linear", "cannot build llama4_text with this linear entry"),
        ("llama4_text", "llama3", None),
        ("llama4_text", "default", None),
        ("llama", "yarn", None),
    ],
)
def test_what_transformers_4_takes_for_another_type_is_a_warning(
    kind: str, rope_type: str, said: str | None
) -> None:
    assert misread_by_4({"rope_type": rope_type, "rope_theta": 1e4}, kind) == said


def test_llama_4_is_saved_with_that_warning_or_not_at_all(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "num_local_experts": 2, "intermediate_size_mlp": 64, "attention_chunk_size": None,
    }  # fmt: skip
    model = tiny_model("llama4_text", **settings)
    with warnings.catch_warnings(), ropex.patch(model, "yarn:4"):
        if not version_5():
            with pytest.raises(ValueError, match="cannot be written into a config"):
                model.save_pretrained(tmp_path)
            return
        with pytest.warns(UserWarning, match="transformers 4 cannot build llama4_text"):
            model.save_pretrained(tmp_path)


def test_a_part_of_a_model_is_saved_in_both_notations(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, LlavaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = LlavaConfig(
        text_config=tiny_config().to_dict(),
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=3,
        image_seq_length=4,
    )
    model: Any = AutoModelForImageTextToText.from_config(config)
    with ropex.patch(model, "yarn:4"):
        model.save_pretrained(tmp_path)
    text = config_of(tmp_path)["text_config"]
    assert text["rope_scaling"]["factor"] == text["rope_parameters"]["factor"] == 4.0
    assert text["rope_theta"] == 10000.0


def test_a_config_that_builds_another_model_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropex.checkpoints.write.completed", lambda raw, *_: raw)
    with pytest.raises(ValueError, match=r"transformers builds model\.rotary_emb otherwise"):
        write(folder, tmp_path / "out", "yarn:4")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_checkpoint_without_weights_is_not_written(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        write(folder, tmp_path / "out", "yarn:4")


def test_further_chat_templates_come_along(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{x}}", encoding="utf-8")
    for force in (False, True):
        write(folder, tmp_path / "out", "yarn:4", force=force)
        assert (tmp_path / "out" / "additional_chat_templates" / "tools.jinja").is_file()


def test_the_window_can_be_lifted_in_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("mistral", sliding_window=40)
    model.save_pretrained(tmp_path / "model")
    skeleton = load_skeleton(tmp_path / "model")
    with ropex.patch(skeleton, "yarn:4", lift_sliding_window=True) as patch:
        save_patched(tmp_path / "model", patch, tmp_path / "out")
    loaded = plain(tmp_path / "out")
    with ropex.patch(model, "yarn:4", lift_sliding_window=True):
        assert torch.equal(logits(loaded, IDS), logits(model, IDS))


def test_a_skeleton_holds_no_weights_and_knows_its_rope(folder: Path) -> None:
    skeleton = load_skeleton(folder)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    rope = ropex.rope_of(skeleton)
    assert torch.equal(rope.inv_freq, ropex.rope_of(load_model(folder)).inv_freq)


def test_a_patch_of_a_skeleton_lives_on_when_weights_arrive(folder: Path) -> None:
    skeleton = load_skeleton(folder)
    ropex.patch(skeleton, "yarn:4")
    skeleton.load_state_dict(load_model(folder).state_dict(), assign=True)
    model = load_model(folder)
    with ropex.patch(model, "yarn:4"):
        assert torch.equal(logits(skeleton.eval(), IDS), logits(model, IDS))


def test_a_file_of_version_5_alone_is_read_right(tmp_path: Path) -> None:
    theta, path = 5e5, tmp_path / "model"
    tiny_model("llama", **rope_settings(theta)).save_pretrained(path)
    raw = config_of(path)
    if "rope_theta" in raw:
        raw["rope_parameters"] = {"rope_type": "default", "rope_theta": raw.pop("rope_theta")}
        del raw["rope_scaling"]
        (path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert set(config_of(path)).isdisjoint({"rope_theta", "rope_scaling"})
    assert ropex.rope_of(load_model(path)).base == theta
    assert ropex.rope_of(load_skeleton(path)).base == theta
    write(path, tmp_path / "out", "yarn:4")
    loaded = plain(tmp_path / "out")
    model = load_model(path)
    with ropex.patch(model, "yarn:4"):
        assert torch.equal(logits(loaded, IDS), logits(model, IDS))


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_id_brings_one_kind_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    asked: list[list[str]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
        if "*" + Path(stored).suffix in allow_patterns:
            (tmp_path / stored).write_bytes(b"\2\0\0\0\0\0\0\0{}")  # without tensors
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("someone/model", weights=False) == tmp_path
    assert not (tmp_path / stored).exists()
    assert find("someone/model") == tmp_path
    assert (tmp_path / stored).exists()
    assert len(asked) == (2 if stored.endswith("safetensors") else 3)


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_patch_leaves_nothing_or_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    out, source = tmp_path / "out", tree(folder)
    if existing:
        write(folder, out, "linear:4")
    before = tree(out) if existing else None
    for turn in range(100):
        left = [turn]
        with monkeypatch.context() as patched:
            for owner, name in ((copies, "_copy"), (os, "replace"), (Path, "write_text")):
                interrupt_after(patched, owner, name, left)
            try:
                write(folder, out, "yarn:4", force=True)
                break
            except KeyboardInterrupt:
                pass
        assert tree(folder) == source
        assert {path.name for path in tmp_path.iterdir()} <= {"model", "out"}
        assert (tree(out) if out.exists() else None) == before
    assert turn > 4
    assert config_of(out)["rope_parameters"]["rope_type"] == "yarn"


def interrupt_after(patched: pytest.MonkeyPatch, owner: Any, name: str, left: list[int]) -> None:
    """Stop once, at the call that counts down to 0; all the functions share one count."""
    real = getattr(owner, name)

    def stopping(*args: Any, **given: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return real(*args, **given)

    patched.setattr(owner, name, stopping)


def test_the_same_patch_writes_the_same_bytes_in_the_order_of_transformers(
    folder: Path, tmp_path: Path
) -> None:
    write(folder, tmp_path / "one", "yarn:4")
    raw = config_of(folder)
    turned = dict(reversed(raw.items()))
    (folder / "config.json").write_text(json.dumps(turned), encoding="utf-8")
    write(folder, tmp_path / "two", "yarn:4")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    written = (tmp_path / "one" / "config.json").read_text(encoding="utf-8")
    assert written == json.dumps(json.loads(written), indent=2, sort_keys=True) + "\n"
