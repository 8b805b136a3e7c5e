"""Every verb of the command line, what it prints, and how it refuses."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex.cli import VERBS
from ropex.strategies.registry import registry
from tests.support.models import plain, save_checkpoint, save_with_tokenizer, tiny_causal, tiny_gpt2
from tests.support.paths import python
from tests.support.shell import Shell, change_config, evaluation, with_config, write
from tests.support.tiny_eval import tree

# The command itself.


def test_error_of_a_real_process_is_one_line(tmp_path: Path) -> None:
    save_with_tokenizer(tiny_gpt2(), tmp_path / "gpt2")
    call = "import sys; from ropex.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python("-c", call, "eval", str(tmp_path / "gpt2"), "-s", "yarn:4")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "inv_freq" in done.stderr


def test_reader_that_leaves_early_is_no_error() -> None:
    call = "import sys; from ropex.cli import main; sys.exit(main(sys.argv[1:]))"
    closed = "import os; os.close(1); r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n" + call
    done = python("-c", closed, "strategies")
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_told(world: Shell) -> None:
    assert world("--version") == (0, f"ropex {ropex.__version__}\n", "")


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_is_told(world: Shell, verb: tuple[str, ...]) -> None:
    status, out, err = world(*verb, "--help")
    assert (status, err) == (0, "")
    assert f"usage: ropex {' '.join(verb)}".rstrip() in out
    assert not verb or re.search(rf"examples?:\n  ropex {verb[0]} ?", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "VERB"),
        (("plan", "tiny", "-s", "yarn:4"), "ropex plan is now ropex eval --dry-run"),
        (("--traceback", "check", "tiny"), "ropex check is now ropex eval --check"),
        (("eval", "tiny", "--dry-run", "--check"), "--check: not allowed with argument --dry-run"),
        (("evaluate",), "unknown verb 'evaluate'; did you mean 'eval'? (verbs: suggest, "),
        (("pathc", "tiny"), "unknown verb 'pathc'; did you mean 'patch'?"),
        (("rescore", "out"), "ropex rescore is now ropex report"),
        (("trained", "out"), "ropex trained is now ropex compare"),
        (("eval",), "MODEL"),
        (("patch", "tiny", "-o", "new"), "-s/--strategy"),
        (("patch", "tiny", "-s", "yarn:4"), "-o/--out"),
        (("eval", "tiny", "--nonsense"), "--nonsense"),
        (("eval", "tiny", "--excerpts", "many"), "--excerpts: invalid int value: 'many'"),
        (("eval", "tiny", "--excerpt", "long"), "--excerpt: 'long' is not a length"),
        (("eval", "tiny", "--stride", "far"), "--stride: 'far' is not a length"),
        (("eval", "tiny", "--budget", "soon"), "--budget: 'soon' is not a time; write 90s, 20m or"),
        (("eval", "tiny", "--budget", ""), "--budget: '' is not a time"),
        (("eval", "tiny", "--budget", "20"), "--budget: '20' is not a time"),
        (("eval", "tiny", "--max-memory", "much"), "--max-memory: 'much' is not a size; write 20G"),
        (("eval", "tiny", "--max-memory", "20"), "--max-memory: '20' is not a size"),
        (("eval", "tiny", "--dtype", "int8"), "--dtype"),
        (("eval", "tiny", "--trained-length", "long"), "'long' is not a length"),
        (("eval", "tiny", "--targets", "few"), "'few' is not a length"),
        (("eval", "tiny", "--lengths", "many"), "'many' is not a length; write 4096, 32k or 1M"),
    ],
)
def test_wrong_usage_is_one_line(world: Shell, arguments: tuple[str, ...], message: str) -> None:
    assert message in world.refused(*arguments)


@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_traceback_is_shown_only_on_request(world: Shell, place: int) -> None:
    command = ["show", "tiny", "-s", "nothing"]
    with pytest.raises(ValueError, match="unknown strategy"):
        world(*command[:place], "--traceback", *command[place:])


def test_a_bug_is_not_taken_for_a_mistake(world: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pattern: str) -> list[str]:
        raise KeyError(pattern)

    monkeypatch.setattr("ropex.strategies.registry.list_strategies", broken)
    with pytest.raises(KeyError):
        world("strategies")


def test_libraries_are_quiet(world: Shell) -> None:
    hub = logging.getLogger("huggingface_hub")
    hub.setLevel(logging.WARNING)
    assert world("show", "tiny")[0] == 0
    assert not hub.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("model", ["", "./my-lama", "../my-lama", "~/my-lama", "/no/my-lama",
                                   "models/llama/8b", "my-lama/", ".my-lama"])  # fmt: skip
def test_the_hub_is_not_asked_for_what_can_only_be_a_folder(
    world: Shell, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "ropex.checkpoints.find._download", lambda name, weights: asked.append(name)
    )
    assert f"no such folder: '{model}'" in world.refused("show", model)
    assert not asked


# Refusals. Each function prepares the folder and returns the command.


def command(*arguments: str) -> Callable[[], list[str]]:
    return lambda: list(arguments)


def after(
    act: Callable[[], object], then: Callable[[], list[str]] | None = None
) -> Callable[[], list[str]]:
    """A command, by default an evaluation, once something has happened in the folder."""

    def prepare() -> list[str]:
        act()
        return (then or evaluation())()

    return prepare


def gpt2(*arguments: str) -> Callable[[], list[str]]:
    return after(lambda: save_with_tokenizer(tiny_gpt2(), Path("gpt2")), command(*arguments))


def larger_tokenizer(*arguments: str) -> Callable[[], list[str]]:
    """A command on a model with fewer embeddings than its tokenizer has ids."""
    return after(
        lambda: tiny_causal(vocab_size=50).save_pretrained("tiny"),
        command(*arguments) if arguments else None,
    )


def no_tokenizer() -> None:
    for path in Path("tiny").glob("*token*"):
        path.unlink()


def tokenizer_without_a_number() -> None:
    path = Path("tiny/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "x"}))


BARE = ("eval", "bare", "--lengths", "8,48", "--data", "book.txt")
UNREADABLE = "tiny: transformers cannot read this checkpoint: "
SHOW, PATCH = command("show", "tiny"), command("patch", "tiny", "-s", "yarn:4", "-o", "new")
CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
ZIGZAG = {"rope_type": "zigzag", "factor": 2.0, "rope_theta": 1e4}
NO_LENGTH = "tiny/config.json does not say the trained length"

REFUSALS = {
    "unknown strategy": (evaluation("-s", "yran:4"),
                         "unknown strategy 'yran'; did you mean 'yarn'?"),
    "strategy too short": (evaluation("-s", "none", "-s", "yarn:length=16"),
                           "state a longer length"),
    "length 0": (evaluation("--lengths", "0"), "--lengths: '0' is no length"),
    "targets 0": (evaluation("--targets", "0"),
                  "--targets: '0' is no length, it must be from 1 to 2**40"),
    "excerpts 0": (evaluation("--excerpts", "0"), "--excerpts is 0, it must be at least 1"),
    "stride 0": (evaluation("--stride", "0"), "--stride: '0' is no length"),
    "short 0": (evaluation("--definitions", "longppl", "--short", "0"),
                "--short: '0' is no length"),
    "excerpt 0": (evaluation("--excerpt", "0"), "--excerpt: '0' is no length"),
    "report, targets 0": (command("report", "out", "--targets", "0"), "--targets: '0' is no"),
    "report, short 0": (command("report", "out", "--short", "0"), "--short: '0' is no length"),
    "verify, length 0": (command("verify", "tiny", "--url", "http://localhost:9", "--length", "0"),
                         "--length: '0' is no length"),
    "show, length 0": (command("show", "tiny", "--length", "0"), "--length: '0' is no length"),
    "suggest, length 0": (command("suggest", "tiny", "--length", "0"), "'0' is no length"),
    "tasks, length 0": (command("tasks", "kv", "tiny", "--length", "0"), "'0' is no length"),
    "doctor, trained length 0": (command("doctor", "tiny", "--trained-length", "0"), "'0' is no"),
    "length of 5000 digits": (evaluation("--targets", "9" * 5000), "is not a length"),
    "length beyond all": (evaluation("--excerpt", "9" * 15), "it must be from 1 to 2**40"),
    "lengths beyond all": (evaluation("--lengths", "8..999999999M"), "it must be from 1 to 2**40"),
    "a million lengths": (evaluation("--lengths", "8..1M:1"), "1048569 lengths; at most 1000"),
    "larger tokenizer": (larger_tokenizer(), "tiny has embeddings of 0 to 49; "),
    "larger tokenizer, check": (
        larger_tokenizer("eval", "tiny", "--check", "--data", "book.txt", "--lengths", "32"),
        "has embeddings of 0 to 49",
    ),
    "larger tokenizer, tasks": (
        larger_tokenizer(*evaluation("--definitions", "none", "--tasks", "kv")()),
        "has embeddings of 0 to 49",
    ),
    "larger tokenizer, verify": (
        larger_tokenizer(
            "verify", "tiny", "--url", "http://localhost:9", "--data", "book.txt", "--length", "32",
        ),
        "has embeddings of 0 to 49",
    ),
    "excerpt too long": (evaluation("--excerpt", "1k"), "has 200 tokens, and 1023 are needed"),
    "rolling without bos": (evaluation("--definitions", "rolling", "--bos", "none"),
                            "rolling starts with a token that is not part of the text; give --bos"),
    "trained length 0": (evaluation("--trained-length", "0"), "--trained-length: '0' is no"),
    "trained length 1": (evaluation("--trained-length", "1"), "trained_length is 1"),
    "json of a dry run": (evaluation("--dry-run", "--json"), "neither --dry-run nor --check has"),
    "bad device": (evaluation("--device", "warp"), "--device warp: "),
    "empty device": (evaluation("--device", ""), "--device : "),
    "unknown bos": (evaluation("--bos", "<start>"), "the tokenizer of tiny has no token '<start>'"),
    "no bos": (after(lambda: save_checkpoint(Path("bare"), bos=False), command(*BARE)),
               "the tokenizer of bare has no BOS token; --bos none starts texts with"),
    "no lift": (evaluation("--lift-sliding-window", "-s", "yarn:4"), "has no sliding window"),
    "no such model": (command("eval", "none/of-that-name"),
                      "neither a folder nor a model of the hub"),
    "no such folder": (command("eval", "./no/such/folder"), "no such folder: './no/such/folder'"),
    "no model name": (command("eval", ""), "no such folder: ''"),
    "folder without config": (command("eval", "."),
                              "holds no config.json, so it is not a checkpoint"),
    "model is a file": (command("eval", "book.txt"), "book.txt is a file; name the folder"),
    "damaged config": (after(lambda: write("tiny/config.json", "{")), "config.json"),
    "unknown type": (with_config(evaluation(), model_type="nothing-of-that-name"),
                     "nothing-of-that-nam"),
    "size in words": (with_config(SHOW, hidden_size="many"), UNREADABLE),
    "no heads": (with_config(SHOW, num_attention_heads=0), UNREADABLE),
    "unknown rope type": (with_config(SHOW, rope_scaling=ZIGZAG, rope_parameters=ZIGZAG),
                          f"{UNREADABLE}KeyError: 'zigzag'"),
    "unknown dtype": (with_config(PATCH, torch_dtype="float99", dtype="float99"), UNREADABLE),
    "code of its own": (with_config(SHOW, model_type="own", auto_map=CODE),
                        "tiny holds code of its own; --trust-remote-code runs it"),
    "no length, eval": (with_config(evaluation(), max_position_embeddings=None), NO_LENGTH),
    "no length, show": (with_config(SHOW, max_position_embeddings=None), "give --trained-length N"),
    "no length, patch": (with_config(PATCH, max_position_embeddings=None),
                         "llama would be a guess"),
    "no type": (after(lambda: write("tiny/config.json", "{}")), "tiny"),
    "no tokenizer": (after(no_tokenizer), "tiny holds no tokenizer that transformers reads"),
    "tokenizer's limit in words": (
        after(tokenizer_without_a_number),
        "tiny/tokenizer_config.json says model_max_length 'x'; it must be a number of tokens",
    ),
    "damaged tokenizer": (after(lambda: write("tiny/tokenizer.json", "{}")), UNREADABLE),
    "gpt2 eval": (gpt2("eval", "gpt2"), "looked for a module with an `inv_freq` buffer in GPT2LMH"),
    "gpt2 patch": (gpt2("patch", "gpt2", "-s", "yarn:4", "-o", "new"), "`inv_freq` buffer in GPT2"),
    "gpt2 show": (gpt2("show", "gpt2"), "gpt2 has no rotary embedding that ropex knows"),
    "no such text": (evaluation("--data", "none.txt"), "no such file or folder: none.txt"),
    "jsonl, missing": (evaluation("--data", "d.jsonl:t"), "no such file: d.jsonl"),
    "out is a file": (after(lambda: write("out", "years of work"), evaluation("--force")),
                      "out is a file; give a folder"),
    "strategies, none": (command("strategies", "*zip*"), "no strategy matches '*zip*'"),
    "show, unknown": (command("show", "tiny", "-s", "yran:2"), "did you mean 'yarn'?"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "message"), [pytest.param(*case, id=name) for name, case in REFUSALS.items()]
)
def test_mistake_is_one_line_and_changes_no_file(
    world: Shell, prepare: Callable[[], list[str]], message: str
) -> None:
    assert message in world.refused(*prepare())


def test_trained_length_that_no_config_says_is_taken_from_the_user(world: Shell) -> None:
    change_config(Path("tiny"), max_position_embeddings=None)
    status, out, _ = world("show", "tiny", "--trained-length", "32")
    assert status == 0
    assert "trained at 32 tokens" in out


# ropex patch


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = plain(folder)(ids).logits
    return logits


@pytest.mark.parametrize("text", ["none", "yarn:4", "linear:4", "linear:2+ntk:2", "dynamic:4"])
def test_patch_writes_a_checkpoint_that_needs_no_ropex(world: Shell, text: str) -> None:
    source = tree(Path("tiny"))
    status, out, err = world("patch", "tiny", "-s", text, "-o", "new/deep")
    assert (status, out) == (0, "")
    assert "\nwritten to new/deep, weights c" in err  # cloned or copied
    assert f"Patch({text})" in err
    assert tree(Path("tiny")) == source
    assert set(tree(Path("new/deep"))) == {*source, "ropex.json"}
    ids = torch.arange(2, 98)[None]
    model = tiny_causal()
    with ropex.patch(model, text), torch.no_grad():
        assert torch.equal(logits_of(Path("new/deep"), ids), model(ids).logits)


def test_patch_takes_one_strategy(world: Shell) -> None:
    message = world.refused("patch", "tiny", "-s", "yarn:4", "-s", "logn", "-o", "new")
    assert "holds one strategy; give one -s, or yarn:4+logn to combine them" in message


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("out", ["tiny", "./tiny/", "link", ".", "../{here}/tiny"])
def test_patch_never_writes_over_its_source(world: Shell, out: str, force: tuple[str, ...]) -> None:
    Path("link").symlink_to("tiny", target_is_directory=True)
    out = out.format(here=world.folder.name)
    message = world.refused("patch", "tiny", "-s", "yarn:4", "-o", out, *force)
    assert "holds the checkpoint that is read; write elsewhere" in message


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_patch_never_replaces_what_is_no_checkpoint(world: Shell, force: tuple[str, ...]) -> None:
    write("thesis/chapter.txt", "years of work")
    write("node/config.json", '{"port": 80}')
    for out in ("thesis", "node", "book.txt"):
        message = world.refused("patch", "tiny", "-s", "yarn:4", "-o", out, *force)
        assert f"{out} exists and is not a checkpoint, so it is not replaced" in message


def test_patch_that_fails_at_the_last_step_puts_back_what_was_there(
    world: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    world("patch", "tiny", "-s", "yarn:4", "-o", "new")
    real, before = os.replace, tree(Path("new"))

    def full(source: Any, target: Any) -> None:
        if Path(source).name == "built":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("ropex.files.places._exchanged", lambda *_: False)
    monkeypatch.setattr("ropex.files.places.os.replace", full)
    assert world("patch", "tiny", "-s", "linear:4", "-o", "new", "--force")[0] == 2
    assert tree(Path("new")) == before


# ropex strategies


def test_strategies_are_listed(world: Shell) -> None:
    status, out, err = world("strategies")
    assert (status, err) == (0, "")
    for name, cls in registry().items():
        assert any(line.split(" ")[0] == name for line in out.splitlines())
        assert f"  {cls.paper}\n" in out
    assert "  parameters: factor, length, beta_fast=32, beta_slow=1, truncate=true" in out


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("ntk*", ["ntk", "ntk_by_parts", "ntk_fixed", "ntk_mixed"]),
        ("yarn", ["yarn"]),
        ("pi", ["linear"]),
        ("LLAMA?", ["llama3"]),
    ],
)
def test_strategies_are_listed_by_wildcard(world: Shell, pattern: str, names: list[str]) -> None:
    _, out, _ = world("strategies", pattern)
    heads = [line.split(" ")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert heads == names
