"""Replacing a checkpoint: killed at any moment, beside others, and over what is not one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ropex.checkpoints import write as checkpoint
from ropex.files import places
from ropex.files.places import BUILT, put, workplace
from tests.support.models import tiny_model
from tests.support.processes import begin
from tests.support.shell import Shell
from tests.support.tiny_eval import tree
from tests.support.written import write

KILLS = int(os.environ.get("ROPEX_KILLS", "6"))
"""How often a process is killed; each is a fork of one that has imported everything."""

# Forks a process that replaces a checkpoint, kills it after a while, and says what is there; in
# every other turn no system call exchanges two folders.
KILLED = """
import os, random, signal, sys, time, warnings
from pathlib import Path
from ropex import patch
from ropex.files import places
from ropex.checkpoints.write import save_patched
from ropex.checkpoints.loading import load_skeleton

exchanged = places._exchanged
warnings.simplefilter("ignore")
patches = [patch(load_skeleton(Path("model")), text) for text in ("linear:2", "linear:4")]

def write(turn):
    save_patched(Path("model"), patches[turn % 2], Path("out"), force=True)

begin = time.monotonic()
write(0)
took, draw = time.monotonic() - begin, random.Random(0)
for turn in range(int(sys.argv[1])):
    places._exchanged = exchanged if turn % 2 else lambda *_: False
    child = os.fork()
    if not child:
        try:
            for more in range(1, 100):
                write(turn + more)
        finally:
            os._exit(0)
    time.sleep(draw.random() * 3 * took)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    places.clear(Path("out"))
    from transformers import AutoConfig
    names = sorted(path.name for path in Path("out").iterdir())
    print(*names, AutoConfig.from_pretrained("out").max_position_embeddings)
print(*sorted(path.name for path in Path().iterdir()))
"""


@pytest.fixture
def folder(folder: Path, tmp_path: Path) -> Path:
    """A checkpoint, and `out`, patched."""
    write(folder, tmp_path / "out", "linear:2")
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX does it")
def test_a_killed_run_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    status, out, err = begin(tmp_path, str(KILLS), code=KILLED).end()
    assert status == 0, err
    *turns, last = out.splitlines()
    assert len(turns) == KILLS
    whole = "config.json generation_config.json model.safetensors ropex.json 32"
    assert set(turns) == {whole}
    assert last == "model out"


def left_between_two_steps(out: Path) -> Path:
    """What a process that is killed between its two renames leaves."""
    hidden = out.with_name(f".{out.name}.ropex-abcdefgh")
    hidden.mkdir()
    (hidden / "lock").touch()
    out.rename(hidden / "replaced")
    (hidden / BUILT).mkdir()
    return hidden


@pytest.mark.parametrize("force", [False, True])
def test_what_was_moved_away_is_put_back(folder: Path, shell: Shell, force: bool) -> None:
    out, before = folder.with_name("out"), tree(folder.with_name("out"))
    hidden = left_between_two_steps(out)
    options = ["--force"] if force else []
    with pytest.warns(UserWarning, match="out is put back as it was before a run that was stopp"):
        status, _, err = shell("patch", folder, "-s", "yarn:4", "-o", out, *options)
    assert not hidden.exists()
    assert status == (0 if force else 2)
    assert (tree(out) == before) != force
    assert force or "exists; --force replaces it" in err


def test_leftovers_are_removed_and_told(folder: Path) -> None:
    out = folder.with_name("out")
    hidden = out.with_name(".out.ropex-abcdefgh")
    shutil.copytree(out, hidden / BUILT)
    (hidden / "lock").touch()
    with pytest.warns(UserWarning, match=r"\.out\.ropex-abcdefgh was left by a run that was stop"):
        write(folder, out, force=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "out"]


def test_what_is_no_leftover_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (".out.ropex-at-work", ".out.ropex-mine", ".out-cache", ".outer.ropex-abcdefgh"):
        (tmp_path / name / BUILT).mkdir(parents=True)
    (tmp_path / ".out.ropex-mine" / "thesis.tex").touch()
    (tmp_path / ".out.ropex-link").symlink_to(tmp_path / ".out-cache")
    (tmp_path / ".out.ropex-file").touch()
    before = set(tree(tmp_path)) - set(tree(out))
    with FileLock(tmp_path / ".out.ropex-at-work" / "lock"):
        write(folder, out, force=True)
        assert before <= set(tree(tmp_path))


def test_folders_change_places_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with workplace(out) as place:
        built = place / BUILT
        built.mkdir()
        (built / "new").touch()
        if not places._exchanged(built, out):
            pytest.skip("this system exchanges no folders in one step")
        assert [path.name for path in out.iterdir()] == ["new"]
        monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("a second step"))
        put(built, out)
        assert [path.name for path in out.iterdir()] == ["old"]


def test_a_second_step_that_fails_undoes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    monkeypatch.setattr(places, "_exchanged", lambda *_: False)
    with pytest.raises(FileNotFoundError), workplace(out) as place:
        put(place / "missing", out)
    assert [path.name for path in out.iterdir()] == ["old"]


@pytest.mark.parametrize("force", [False, True])
def test_of_two_runs_at_once_the_slower_one_replaces_nothing_unless_told_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    out, real = folder.with_name("new"), checkpoint._check_written

    def slow(*given: Any) -> None:
        real(*given)
        monkeypatch.setattr(checkpoint, "_check_written", real)
        write(folder, out, "linear:4")

    monkeypatch.setattr(checkpoint, "_check_written", slow)
    if force:
        write(folder, out, force=True)
    else:
        with pytest.raises(FileExistsError, match="new exists; --force replaces it"):
            write(folder, out)
    strategy = "yarn:4" if force else "linear:4"
    assert json.loads((out / "ropex.json").read_text(encoding="utf-8"))["strategy"] == strategy


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "results.json", "train.py", "README.md", "my_lora.safetensors", ".git/HEAD",
     "config.json.bak", "notes.txt", "additional_chat_templates/mine.txt"],
)  # fmt: skip
def test_force_deletes_no_file_that_is_not_of_a_checkpoint(
    folder: Path, shell: Shell, name: str
) -> None:
    path = folder.with_name("out") / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine", encoding="utf-8")
    told = shell.refused("patch", folder, "-s", "yarn:4", "-o", "out", "--force")
    assert f"out holds {name.removesuffix('/HEAD')}, which is not a file of a checkpoint" in told


def test_force_replaces_what_savers_write_and_what_came_with_the_source(folder: Path) -> None:
    out = folder.with_name("out")
    (folder / "LICENSE").write_text("free", encoding="utf-8")
    names = ("tokenizer.json", "special_tokens_map.json", "vocab.json", "merges.txt", "LICENSE",
             "tokenizer.model", "model-00001-of-00002.safetensors", "chat_template.jinja",
             "model.safetensors.index.json", "preprocessor_config.json", "modeling_x.py",
             "training_args.bin", "tokenizer_config.json")  # fmt: skip
    for name in names:
        (out / name).write_text("{}", encoding="utf-8")
    write(folder, out, force=True)
    assert set(tree(out)) == {*tree(folder), "ropex.json"}
