"""No text of others acts on a terminal, and a full disk is told with the file that it hit."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from tqdm import tqdm

from ropex.cli.terminal import Escaping, escaping
from ropex.files.writing import atomically, write_json
from tests.support.models import tiny_model
from tests.support.paths import python
from tests.support.shell import Shell
from tests.support.tiny_eval import tree

EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\rok\x08\x7f\u202eevil\u2066\ud800"


def acting(text: str) -> list[str]:
    """Characters that a terminal acts on, by what Unicode calls them."""
    kinds = ("Cc", "Cs")
    turning = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
    return [
        c for c in text if (unicodedata.category(c) in kinds and c not in "\n\t") or c in turning
    ]


def written(*texts: str) -> str:
    buffer = io.StringIO()
    stream = Escaping(buffer, "a stream")
    for text in texts:
        print(text, file=stream)
    return buffer.getvalue()


def test_acting_characters_are_written_as_in_json() -> None:
    assert acting(EVIL) == [c for c in EVIL if c not in "]0;title[2J31mokevil"]
    text = written(EVIL)
    assert not acting(text)
    assert text.startswith(
        "\\u001b]0;title\\u0007\\u001b[2J\\u009b31m\\u000dok\\u0008\\u007f\\u202e"
    )
    assert written("plain, é 漢 \t|\r\n") == "plain, é 漢 \t|\r\n\n"
    for content in ({"a": EVIL}, ["\x9b", "\x7f"]):
        assert json.loads(written(json.dumps(content, ensure_ascii=False))) == content


def test_no_control_character_is_left() -> None:
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        assert not acting(written(f"a{chr(code)}b"))


def test_a_bar_moves_as_ever_and_its_text_does_not_act() -> None:
    shown = []
    for wrapped, said in ((False, "yarn:4"), (True, "yarn:4"), (True, EVIL)):
        buffer = io.StringIO()
        stream = Escaping(buffer, "a stream") if wrapped else buffer
        with tqdm(total=3, file=stream, leave=False, bar_format="{n}/{total} {desc}") as bar:
            with tqdm(total=2, file=stream, position=1, bar_format="{n}/{total}") as inner:
                inner.update(2)
            bar.set_description_str(said)
            bar.update(3)
        shown.append(buffer.getvalue())
    assert shown[0] == shown[1]
    assert "\x1b[A" in shown[0]
    assert "\r3/3 \\u001b]0;title" in shown[2] or "\r0/3 \\u001b]0;title" in shown[2]
    assert set(acting(shown[2].replace("\x1b[A", ""))) == {"\r"}


@pytest.mark.parametrize("verb", [("show",), ("doctor",), ("patch", "-s", "yarn:4", "-o", "out")])
@pytest.mark.parametrize("key", ["model_type", "rope_theta", "max_position_embeddings"])
def test_no_config_acts_on_the_terminal(shell: Shell, verb: tuple[str, ...], key: str) -> None:
    tiny_model("llama").save_pretrained("model")
    config = json.loads(Path("model/config.json").read_text(encoding="utf-8"))
    Path("model/config.json").write_text(json.dumps({**config, key: EVIL}), encoding="utf-8")
    _, out, err = shell(verb[0], "model", *verb[1:])
    assert not acting(out + err)


def test_no_name_and_no_warning_acts_on_the_terminal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not acting(shell.refused("show", "./" + EVIL))
    tiny_model("llama").save_pretrained("model")
    status, _, err = shell("patch", "model", "-s", "yarn:4", "-o", "a\x1b[2Jb")
    assert (status, acting(err)) == (0, [])
    assert "written to a\\u001b[2Jb" in err
    with escaping(), warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", _show)
        warnings.warn(EVIL, stacklevel=1)
    assert not acting(shell.capture.readouterr().err)


def _show(message: object, *_: object) -> None:
    print(message, file=sys.stderr)


def test_a_full_disk_is_told_with_its_file(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*config\.json'"),
        atomically(tmp_path / "config.json"),
    ):
        raise full
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [100, 5000])
def test_a_patch_on_a_full_disk_names_the_file(shell: Shell, room: int) -> None:
    tiny_model("llama").save_pretrained("model")
    before, limits = tree(shell.folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        status, _, err = shell("patch", "model", "-s", "yarn:4", "-o", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    assert "File too large: " in err
    assert "model.safetensors" in err
    assert tree(shell.folder) == before


def test_json_is_replaced_and_links_are_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text("{}", encoding="utf-8")
    os.link(tmp_path / "source.json", tmp_path / "hard.json")
    (tmp_path / "soft.json").symlink_to(tmp_path / "source.json")
    for name in ("hard.json", "soft.json"):
        write_json(tmp_path / name, {"b": 1, "a": "é"}, sort_keys=True)
        assert (tmp_path / name).read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "source.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_an_output_without_room_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = python("-m", "ropex", "recipes", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == "ropex: error: [Errno 28] No space left on device: 'standard output'\n"
