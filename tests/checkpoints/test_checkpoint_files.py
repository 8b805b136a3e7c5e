"""Files of a checkpoint that are not as they must be are told before anything is written."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from ropex.checkpoints.find import find
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.config.notations import version_5
from tests.support.shell import Shell
from tests.support.written import write


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "shard", ["../../etc/passwd", "/etc/passwd", "a/../../b", "inside/a.bin", "..", "", 5, None]
)
def test_a_shard_outside_the_folder_is_refused(folder: Path, shard: Any, index: str) -> None:
    content = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / index).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is no file beside it; it is refused"):
        find(str(folder))


@pytest.mark.parametrize(
    ("index", "weights", "missing"),
    [
        ("model.safetensors.index.json", "model.safetensors", True),
        ("model.safetensors.index.json", None, False),  # small files alone
        ("pytorch_model.bin.index.json", "x.bin", True),
        ("pytorch_model.bin.index.json", "model.safetensors", False),  # which is what is loaded
    ],
)
def test_a_shard_that_is_not_there_is_told(
    folder: Path, index: str, weights: str | None, missing: bool
) -> None:
    content = {"metadata": {}, "weight_map": {"a": "one", "b": "two"}}
    (folder / index).write_text(json.dumps(content), encoding="utf-8")
    (folder / "one").touch()
    held = (folder / "model.safetensors").rename(folder / "held")
    if weights:
        held.rename(folder / weights)
    if missing:
        with pytest.raises(ValueError, match=f"{index} names the shard 'two', which is not there"):
            find(str(folder))
    else:
        assert find(str(folder)) == folder


@pytest.mark.parametrize("by", [-1000, -1, 1])
def test_weights_that_are_cut_off_are_told(folder: Path, by: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size + by)
    with pytest.raises(ValueError, match="cut off or damaged, so get it again"):
        find(str(folder))


@pytest.mark.parametrize("about", [{}, {"data_offsets": [0]}, {"data_offsets": [0, "9"]}, 3])
def test_a_tensor_without_a_place_is_told(folder: Path, about: Any) -> None:
    header = json.dumps({"__metadata__": {}, "lm_head.weight": about}).encode()
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"does not say where 'lm_head\.weight' is"):
        find(str(folder))


@pytest.mark.parametrize(
    ("limit", "written"), [(None, None), ("32", "32"), (16, 128), (1e30, 1e30), (200, 200)]
)
def test_a_tokenizer_keeps_the_limit_that_it_has(
    folder: Path, tmp_path: Path, limit: Any, written: Any
) -> None:
    settings = json.dumps({"model_max_length": limit})
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    write(folder, tmp_path / "out", "yarn:4")
    found = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert found == {"model_max_length": written}


@pytest.mark.parametrize("content", ["[]", "{", '{"a":' * 3000 + "1" + "}" * 3000])
@pytest.mark.parametrize("damaged", ["model/tokenizer_config.json", "out/config.json"])
def test_a_damaged_file_of_settings_is_named(
    folder: Path, tmp_path: Path, damaged: str, content: str
) -> None:
    write(folder, tmp_path / "out", "linear:4")
    (tmp_path / damaged).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=damaged):
        write(folder, tmp_path / "out", "yarn:4", force=True)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", 1.0, "says rope_theta 1.0; it must be a number above 1"),
        ("rope_theta", 0.5, "says rope_theta 0.5; it must be a number above 1"),
        ("partial_rotary_factor", 7.0, "7.0; it must be a number above 0 and at most 1"),
        ("max_position_embeddings", 10**30, r"must be at least 2 and at most 2\*\*40"),
    ],
)
@pytest.mark.parametrize("verb", [("patch", "-o", "out"), ("show",), ("suggest", "--length", "1k")])
def test_a_number_that_no_rope_has_is_told_in_one_sentence(
    folder: Path, shell: Shell, verb: tuple[str, ...], key: str, value: Any, said: str
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    in_entry = version_5() and key != "max_position_embeddings"
    place = config["rope_parameters"] if in_entry else config
    place[key] = value
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    strategy = () if verb[0] == "suggest" else ("-s", "yarn:4")
    assert re.search(said, shell.refused(verb[0], folder, *strategy, *verb[1:]))


@pytest.mark.parametrize("start", [b"\x80\x04", b"PK\x03\x04"])
def test_a_pickle_under_another_name_is_refused(folder: Path, start: bytes) -> None:
    (folder / "model.safetensors").write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match="is a pickle under the name of a safetensors file"):
        find(str(folder))


def test_what_is_no_checkpoint_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no config"):
        find(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a model of the hub"):
        find("nobody/nothing")


def linked(path: Path, target: Path) -> None:
    """Move a file elsewhere, and leave a link to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    path.symlink_to(target)


def test_a_link_that_leads_out_is_left_out_and_told(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "home" / "id_rsa"
    secret.parent.mkdir()
    secret.write_text("secret", encoding="utf-8")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to(secret)
    (folder / "again.json").symlink_to("generation_config.json")  # leads nowhere else
    said = r"left out, as links that lead out of .*: additional_chat_templates/x\.jinja, notes\.txt"
    with pytest.warns(UserWarning, match=said):
        write(folder, tmp_path / "out", "yarn:4")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "again.json", "config.json", "generation_config.json", "model.safetensors", "ropex.json",
    }  # fmt: skip
    assert not (tmp_path / "out" / "again.json").is_symlink()


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_a_hub_cache_is_a_checkpoint(
    folder: Path, tmp_path: Path, shared: bool
) -> None:
    cache = tmp_path / "hub" / "models--someone--model"
    snapshot = cache / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = cache / "blobs" / f"{number:040x}"
        linked(path, blob)
        if shared:  # as huggingface_hub 2.4 keeps what came by Xet
            linked(blob, tmp_path / "hub" / "blobs" / "ab" / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    (tmp_path / "short").symlink_to(snapshot)
    names = {path.name for path in folder.iterdir()} | {"ropex.json"}
    for number, source in enumerate((snapshot, tmp_path / "short")):
        write(source, tmp_path / f"out{number}", "yarn:4")
        found = list((tmp_path / f"out{number}").iterdir())
        assert {path.name for path in found} == names
        assert not any(path.is_symlink() for path in found)
    (snapshot / "notes.txt").symlink_to(tmp_path / "hub" / "token")
    (tmp_path / "hub" / "token").write_text("secret", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"left out, as links .*: notes\.txt"):
        write(snapshot, tmp_path / "out", "yarn:4")


def test_weights_of_numbers_alone_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    linked(folder / "model.safetensors", tmp_path / "disk" / "big")
    write(folder, tmp_path / "out", "yarn:4")
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").symlink_to(tmp_path / "disk" / "big")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a link that leads out"):
        write(folder, tmp_path / "other", "yarn:4")


def test_pickles_are_copied_and_it_is_said_that_they_were_not_looked_into(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80 whatever")
    with pytest.warns(UserWarning, match="was not looked into: they are pickles"):
        write(folder, tmp_path / "out", "yarn:4")
    assert (tmp_path / "out" / "pytorch_model.bin").read_bytes() == b"\x80 whatever"


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "verb",
    [("show",), ("patch", "-s", "yarn:4", "-o", "out"), ("doctor",), ("suggest", "--length", "1k"),
     ("export", "--for", "vllm"), ("eval", "-s", "yarn:4", "--data", "stdlib"), ("verify", "x")],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_a_pipe_is_not_waited_for(
    folder: Path, shell: Shell, verb: tuple[str, ...], name: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    told = shell.refused(verb[0], folder, *verb[1:])
    assert f"{folder / name} is not a regular file" in told


@pytest.mark.parametrize(
    "sizes",
    [{"num_hidden_layers": 10**8}, {"num_hidden_layers": 5000}, {"num_hidden_layers": 10**400},
     {"text_config": {"num_hidden_layers": 10**8}}, {"n_layer": 10**8}, {"encoder_layers": 10**8},
     {"num_experts": 10**7}, {"num_hidden_layers": 4000, "n_routed_experts": 4000}],
)  # fmt: skip
def test_a_model_of_too_many_parts_is_not_built(
    folder: Path, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | sizes), encoding="utf-8")
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("built"))
    for load in (load_skeleton, load_model):
        with pytest.raises(ValueError, match=r"config\.json asks for .* layers or experts"):
            load(folder)
