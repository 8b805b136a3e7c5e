"""Verbs in general: mistakes are reported before torch is imported, and every option counts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ropex.cli import VERBS
from tests.support.options import unread

ROOT = Path(__file__).resolve().parents[2]

AT_ONCE = [
    ["pathc", "demo"],
    ["rescore", "out"],
    *([verb, "--help"] for verb in VERBS),
    ["strategies"],
    ["recipes"],
    ["recipes", "copy", "none"],
    ["train", "none"],
    ["report", "none"],
    ["report", "none", "--lengths", "8"],
    ["compare", "none", "none"],
    ["tasks", "kv", "./none"],
    ["doctor", "./none"],
    ["suggest", "./none", "--length", "1k"],
    ["verify", "demo", "./none"],
    ["verify", "demo", "--url", "http://localhost:9", "--data", "none.txt"],
    ["eval", "demo", "--data", "none.jsonl:text"],
    ["verify", "./none", "demo"],
    ["export", "demo", "--for", "llama.cpp", "--gguf", "none.gguf", "-o", "out.gguf"],
    *(
        [verb, *model, *needed[verb]]
        for needed in [{"eval": [], "show": [], "patch": ["-o", "new"], "export": ["--for", "mlx"]}]
        for verb in needed
        for model in (["./none", "-s", "yarn:4"], ["demo", "-s", "yran:4"], ["demo", "-s", "@none"])
    ),
]
HEAVY = ["torch", "transformers", "datasets", "matplotlib", "numpy", "accelerate"]
RUN = """
import contextlib, io, json, sys
from ropex.cli import main
commands, heavy = map(json.loads, sys.argv[1:])
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(command)
    if found := [name for name in heavy if name in sys.modules]:
        sys.exit(f"{command} imports {found}")
"""


def test_mistakes_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "eval")])
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(AT_ONCE), json.dumps(HEAVY)], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def measured(world: Any, _: pytest.MonkeyPatch) -> None:
    assert world.eval("-s", "none")[0] == 0


def trained(world: Any, patch: pytest.MonkeyPatch) -> None:
    (world.folder / "run").mkdir()
    (world.folder / "run" / "recipe.yaml").touch()
    read = SimpleNamespace(read=lambda folder: folder)
    patch.setattr("ropex_eval.training.trained.Trained", read)
    patch.setattr("ropex_eval.training.trained.table", lambda *given, **named: "")


def served(_: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("ropex.parity.server.served_logprobs", lambda url, name, ids, key: [0.0])
    patch.setattr("ropex.parity.server.own_logprobs", lambda model, ids: [0.0])


COMMANDS: list[tuple[str, Any]] = [
    ("suggest tiny --length 128", None),
    ("strategies", None),
    ("show tiny -s yarn:4", None),
    ("patch tiny -s yarn:4 -o new", None),
    ("verify tiny tiny", None),
    ("verify tiny --url http://localhost:9 --data book.txt", served),
    ("export tiny --for vllm", None),
    ("export tiny --for all", None),
    ("doctor tiny", None),
    ("doctor tiny --fix", None),
    ("tasks", None),
    ("tasks induction tiny", None),
    ("report out", measured),
    ("report out --lengths 8", measured),
    ("compare out out", measured),
    ("compare run", trained),
    ("train smoke --dry-run", None),
    ("recipes", None),
    ("recipes copy smoke", None),
    ("families llama", None),
]


@pytest.mark.parametrize(("command", "prepare"), COMMANDS, ids=[each for each, _ in COMMANDS])
def test_every_option_is_read(
    world: Any, monkeypatch: pytest.MonkeyPatch, command: str, prepare: Any
) -> None:
    if prepare is not None:
        prepare(world, monkeypatch)
    with contextlib.suppress(SystemExit):
        assert unread(*command.split()) <= ({"model"} if command == "tasks" else set())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("verify tiny tiny --served x", "--served is for a server (--url)"),
        ("verify tiny tiny --allowed 0.1", "--allowed is for a server"),
        ("verify tiny tiny --url http://localhost:9", "one of the two"),
        ("export tiny --for vllm --force", "--force is for a file that is written"),
        ("export tiny --for vllm -o out.gguf", "are given together"),
        ("tasks --length 64", "--length is for a prompt; name a TASK"),
        ("tasks --trust-remote-code", "--trust-remote-code is for a prompt"),
        ("recipes -o out.yaml", "--out is for ropex recipes copy NAME"),
        ("compare out out --steps 1", "--steps is for runs of ropex train"),
        ("compare out run", "run is a run of ropex train; compare it with others"),
        ("compare out", "two runs of ropex eval are compared, and 1 are given"),
        ("compare out out2 --force", "--force is for a page (-o)"),
        ("show tiny --force", "--force is for a picture (--png)"),
        ("compare run run -o page.html", "--out is for runs of ropex eval"),
    ],
)
def test_options_that_mean_nothing_beside_others_are_refused(
    world: Any, command: str, message: str
) -> None:
    for name in ("run/recipe.yaml", "out/results.json", "out2/results.json"):
        (world.folder / name).parent.mkdir()
        (world.folder / name).touch()
    assert message in world.refused(*command.split())


def test_strategy_of_a_file_is_exported_like_its_text(world: Any) -> None:
    assert world("patch", "tiny", "-s", "yarn:4", "-o", "new")[0] == 0
    asked = ("export", "tiny", "--for", "vllm", "--json", "-s")
    assert world(*asked, "@new") == world(*asked, "yarn:4")
