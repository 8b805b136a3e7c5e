"""What lies beside a config, how files are mended, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import bfloat16, complex64, float8_e4m3fn, float16, ones, uint8
from torch import bool as torch_bool

from ropex.checkpoints.find import find
from ropex.doctor import diagnose, repair
from ropex.files.untrusted import read_tensors
from tests.support.doctor_configs import GOOD, NOTED, Config, mutated, scaled
from tests.support.doctor_files import ORIGINAL, RECORD, YARN, rules, write
from tests.support.models import tiny_model
from tests.support.shell import Shell

INDEX = "model.safetensors.index.json"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", config=GOOD["Llama 2 7B"])


def test_a_folder_and_its_config_are_the_same(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(scaled(rope_type="linear", factor=4)))
    assert rules(folder) == rules(folder / "config.json") == ["integer-factor"]


@pytest.mark.parametrize(
    ("limit", "config", "expected"),
    [
        ("x", GOOD["Llama 2 7B"], [("tokenizer-limit", "error", False)]),
        ([], GOOD["Llama 2 7B"], [("tokenizer-limit", "error", False)]),
        (10**30, GOOD["Llama 2 7B"], []),
        (4096, scaled(**YARN), [("tokenizer-limit", "warning", True)]),
        (16384, scaled(**YARN), [("tokenizer-limit", "note", False)]),
        (2048, GOOD["Llama 2 7B"], [("tokenizer-limit", "note", False)]),
        (65536, scaled(**YARN), []),
        (1000000000000000019884624838656, scaled(**YARN), []),
        ("4096", scaled(**YARN), [("tokenizer-limit", "error", False)]),
    ],
)
def test_tokenizer_limit(folder: Path, limit: Any, config: Config, expected: list[Any]) -> None:
    write(folder, config=config, tokenizer_config={"model_max_length": limit})
    found = [(each.rule, each.severity, each.fixable) for each in diagnose(folder)]
    assert found == expected
    if expected and expected[0][2]:
        repair(folder)
        assert json.loads((folder / "tokenizer_config.json").read_text()) == {
            "model_max_length": 65536
        }
        assert rules(folder) == []


def test_record_beside_a_model_says_what_it_is_to_reach(folder: Path) -> None:
    write(folder, ropex=RECORD, tokenizer_config={"model_max_length": 8192})
    assert rules(folder) == ["tokenizer-limit"]
    write(folder, config=mutated("Mistral 7B v0.1"), tokenizer_config={})
    assert rules(folder) == ["sliding-window"]


def test_record_supplies_a_trained_length_that_the_config_lost(folder: Path) -> None:
    lost = scaled(rope_type="yarn", factor=4.0) | {"max_position_embeddings": 16384}
    for in_config, fixable in ((True, True), (False, False)):
        write(folder, config=lost, ropex=RECORD | {"in_config": in_config})
        [finding] = diagnose(folder)
        assert (finding.rule, finding.fixable) == ("missing-original", fixable)
    write(folder, ropex=RECORD)
    repair(folder)
    assert json.loads((folder / "config.json").read_text())["rope_scaling"][ORIGINAL] == 4096
    assert rules(folder) == []


def test_record_tells_a_dynamic_model_whose_max_was_raised(folder: Path) -> None:
    dynamic = scaled(rope_type="dynamic", factor=4.0)
    write(folder, config=dynamic | {"max_position_embeddings": 16384}, ropex=RECORD)
    assert rules(folder) == ["raised-max"]
    repair(folder)
    assert json.loads((folder / "config.json").read_text()) == dynamic


def test_rounded_table_in_the_weights(folder: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({name: ones(4), "model.norm.weight": ones(4)}, folder / "model.safetensors")
    assert rules(folder) == []
    save_file({name: ones(4, dtype=bfloat16)}, folder / "model.safetensors")
    [finding] = diagnose(folder)
    assert (finding.rule, finding.where) == ("rounded-table", "model.safetensors")
    assert "BF16" in finding.message


def test_pickles_are_noted_and_never_loaded(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(folder / "sprung"),))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    [finding] = diagnose(folder)
    assert (finding.rule, finding.severity) == ("pickled-weights", "note")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is a pickle under the name of a safetensors file"):
        diagnose(folder)
    assert not (folder / "sprung").exists()
    save_file({"model.norm.weight": ones(4)}, folder / "model.safetensors")
    assert rules(folder) == []  # nobody loads the pickle


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/x", "..\\x", "C:\\x", "a/../../x", 7])
def test_shard_outside_the_folder_is_refused(folder: Path, shard: Any) -> None:
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": shard}})
    )
    with pytest.raises(ValueError, match="is no file beside it; it is refused"):
        diagnose(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"\x88\x13" + bytes(6) + b"{}  ",
        b"\xff" * 8,
        b"\xff\xff\xff\x7f" + bytes(4),
        (10**9).to_bytes(8, "little") * 2,
    ],
)
def test_impossible_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file: its header would have"):
        diagnose(folder)


@pytest.mark.parametrize("header", [b"{]", b"[]", b"\xff\xfe", b"{" * 50, b"1" * 5000])
def test_broken_header_is_refused(folder: Path, header: bytes) -> None:
    content = len(header).to_bytes(8, "little") + header
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"the header of .*model\.safetensors"):
        diagnose(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[]", "holds a list; it must hold an object"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON that can be read: Exceeds the limit"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested too deeply"),
    ],
    ids=["empty", "list", "digits", "deep and open", "deep"],
)
def test_config_that_cannot_be_read_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        diagnose(folder)


def test_file_too_large_to_be_a_config_is_refused(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(10 * 2**30)  # takes no space on the disk
    with pytest.raises(ValueError, match=r"has 10,737,418,240 bytes; .* at most 64 MiB"):
        diagnose(folder)


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "model.safetensors")  # opening it would wait for ever
    with pytest.raises(ValueError, match="not a regular file"):
        diagnose(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        diagnose(folder / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no config.json and no adapter_config.json"):
        diagnose(write(folder / "empty"))


def test_text_for_a_terminal_holds_no_control_characters(folder: Path) -> None:
    nested = {"\x1b[2J": {"rope_type": "\x1b[31m", "factor": "\x1b", "\x1bbeta_fas": 1}}
    write(folder, config=mutated("Llama 2 7B", rope_parameters=nested, rope_theta="\x1b"))
    found = diagnose(folder)
    assert len(found) >= 3
    assert all((each.where + each.message + each.fix).isprintable() for each in found)


@pytest.mark.parametrize("name", [*GOOD, *NOTED])
def test_good_checkpoint_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", config={**GOOD, **NOTED}[name])
    before = tree(folder)
    done = repair(folder)
    assert (done.mended, done.backups) == ((), ())
    assert tree(folder) == before


def test_repair_keeps_what_was_there_and_twice_is_once(folder: Path) -> None:
    path = folder / "config.json"
    config = scaled(rope_type="linear", factor=4) | {"title": "\ud800 é"}
    path.write_text(json.dumps(config))
    path.chmod(0o640)
    before = path.read_bytes()
    done = repair(folder)
    assert done.backups == (folder / "config.json.bak",)
    assert done.backups[0].read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert json.loads(path.read_text()) == config | {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0}
    }
    once = tree(folder)
    assert not repair(folder).mended
    assert tree(folder) == once


def test_repair_overwrites_no_backup(folder: Path) -> None:
    (folder / "config.json.bak").write_text("precious")
    (folder / "config.json.bak.1").symlink_to(folder / "nowhere")
    (folder / "config.json").write_text(json.dumps(scaled(rope_type="linear", factor=4)))
    assert repair(folder / "config.json").backups == (folder / "config.json.bak.2",)
    assert (folder / "config.json.bak").read_text() == "precious"
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("room", [-1, 0])
def test_repair_on_a_full_disk_leaves_all_as_it_was(folder: Path, room: int) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(scaled(rope_type="linear", factor=4)))  # the backup is shorter
    before, limits = tree(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            repair(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(folder) == before


def test_repair_for_one_engine_leaves_the_rest(folder: Path) -> None:
    entry = YARN | {"factor": 16, "beta_fast": 1.0, "beta_slow": 32.0}
    write(folder, config=scaled(**entry))
    done = repair(folder, engine="llama.cpp")
    assert [each.rule for each in done.mended] == ["swapped-betas"]
    assert not repair(folder, engine="vllm").mended
    assert rules(folder) == ["integer-factor"]


def test_link_to_a_config_is_replaced_and_its_file_kept(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_text(json.dumps(scaled(rope_type="linear", factor=4)))
    before = blob.read_bytes()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(blob)
    repair(folder)
    assert blob.read_bytes() == before
    assert rules(folder) == []


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_transformers_saves_fit(tmp_path: Path, kind: str, tied: bool) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="12KB")
    model.model.save_pretrained(tmp_path / "base")
    for name in ("one", "many", "base"):
        assert "weights-misfit" not in rules(tmp_path / name)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of a checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said", "refused"),
    [
        (lambda t: t.pop(NORM), f'lack 1 tensors, "{NORM}" first',
         "lacks 1 of the model's weights"),
        (lambda t: t.pop("lm_head.weight"), '"lm_head.weight"', "lm_head.weight"),
        (lambda t: t.update({QUERY: ones(3, 5)}), "has the shape [3, 5]", "has a different shape"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_told_and_not_patched(
    tmp_path: Path, change: Any, said: str, refused: str, shell: Shell
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    assert "weights-misfit" not in rules(tmp_path / "model")
    rewritten(tmp_path / "model", change)
    [finding] = [each for each in diagnose(tmp_path / "model") if each.rule == "weights-misfit"]
    assert said in finding.message
    assert refused in shell.refused("patch", "model", "-s", "yarn:4", "-o", "out")


def test_a_tensor_that_an_index_places_and_no_file_holds_is_told(tmp_path: Path) -> None:
    tiny_model("gpt_neox").save_pretrained(tmp_path, max_shard_size="12KB")
    assert "weights-misfit" not in rules(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["gpt_neox.more"] = next(iter(index["weight_map"].values()))
    (tmp_path / INDEX).write_text(json.dumps(index))
    [finding] = [each for each in diagnose(tmp_path) if each.rule == "weights-misfit"]
    assert '"gpt_neox.more" first' in finding.message


PLACED = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("about", "size", "said"),
    [
        ({"dtype": "F33"}, 4, "dtype that safetensors"),
        ({"dtype": 7}, 4, "dtype that safetensors"),
        ({"dtype": "F16"}, 4, "has 4 bytes, and its shape takes 2"),
        ({"dtype": "F4"}, 4, "has 4 bytes, and its shape takes 0"),
        ({"shape": [2]}, 4, "has 4 bytes, and its shape takes 8"),
        ({"shape": [-1]}, 4, "has no shape"),
        ({"shape": [1.0]}, 4, "has no shape"),
        ({"shape": None}, 4, "has no shape"),
        ({"data_offsets": [4, 8]}, 8, "leaves a gap"),
        ({"data_offsets": [-4, 0]}, 0, "does not say where"),
        ({"data_offsets": [True, 4]}, 4, "does not say where"),
        ({"data_offsets": [8, 4]}, 4, "shape takes 4"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(
    tmp_path: Path, about: dict[str, Any], size: int, said: str
) -> None:
    check_header(tmp_path, {"a": PLACED["a"] | about}, size, said)


def test_tensors_that_overlap_and_notes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    check_header(tmp_path, PLACED | {"b": PLACED["a"]}, 4, "overlaps others")
    check_header(tmp_path, PLACED | {"__metadata__": {"n": 1}}, 4, "__metadata__ is not all text")


def check_header(folder: Path, header: dict[str, Any], size: int, said: str) -> None:
    """A header is refused, by safetensors itself as by ropex."""
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(size)
    write(folder, config=GOOD["Llama 2 7B"])
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SafetensorError):
        load(content)
    with pytest.raises(ValueError, match=said):
        diagnose(folder)
    with pytest.raises(ValueError, match=said):
        find(str(folder))


@pytest.mark.parametrize("dtype", [float16, bfloat16, float8_e4m3fn, uint8, torch_bool, complex64])
def test_all_types_of_numbers_are_known(tmp_path: Path, dtype: Any) -> None:
    save_file({"a": ones(2, 3).to(dtype), "b": ones(0, 3).to(dtype)}, tmp_path / "x.safetensors")
    assert {each.shape for each in read_tensors(tmp_path)} == {(2, 3), (0, 3)}
