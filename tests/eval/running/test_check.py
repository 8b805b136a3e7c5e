"""Proof on a model: it holds for a harness that is right, and for none that is broken."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ropex_eval.measure import feed_forward
from ropex_eval.measure import losses as nll
from ropex_eval.measure.losses import Scorer
from ropex_eval.running.check import Finding, described
from ropex_eval.study import corpus, store
from ropex_eval.study.study import Study
from tests.support.models import tiny_causal, tiny_tokenizer
from tests.support.shell import Shell
from tests.support.tiny_eval import tree, words

STRATEGIES = ("none", "yarn:4", "dynamic", "dynamic:2+logn")
ASKED = ("eval", "tiny", "--check", "--lengths", "36,72", "--data", "book.txt")


@pytest.fixture
def shell(checkpoint: Path, shell: Shell) -> Shell:
    (shell.folder / "tiny").symlink_to(checkpoint)
    (shell.folder / "book.txt").write_text(words(400), encoding="utf-8")
    return shell


def findings(told: str) -> dict[str, bool]:
    """What was checked, and whether it holds."""
    lines = (re.fullmatch(r"(ok|FAIL) +(.+): .+", line) for line in told.splitlines())
    found = {line[2]: line[1] == "ok" for line in lines if line}
    assert len(found) == len(told.splitlines())
    return found


@pytest.mark.parametrize("text", STRATEGIES)
def test_right_harness_passes(shell: Shell, text: str) -> None:
    before = tree(shell.folder)
    found = findings(shell.done(*ASKED, "-s", text))
    assert all(found.values())
    assert list(found) == [
        "BOS stands once, in front",
        "head alone = the model's logits",
        "loss in float32 = in float64",
        "feed-forward in rows = at once",
        "stored = read",
        "resumed = fresh",
        f"{text}: prefix = own pass",
        f"{text}: pieces = at once",
        f"{text}: side by side = alone",
        f"{text}: decoding = prefill",
        f"{text}: measured = patched",
    ]
    assert tree(shell.folder) == before


def test_none_and_yarn_are_checked_unless_told(shell: Shell) -> None:
    found = findings(shell.done(*ASKED))
    assert [name for name in found if "measured" in name] == [
        "none: measured = patched", "yarn:4: measured = patched",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_right_harness_passes_in_shorter_number_types(shell: Shell, dtype: str) -> None:
    quiet = tiny_causal()
    with torch.no_grad():
        for parameter in quiet.parameters():
            parameter.mul_(0.2 if parameter.ndim == 2 else 1)
    quiet.save_pretrained(shell.folder / "quiet")
    tiny_tokenizer().save_pretrained(shell.folder / "quiet")
    asked = ("eval", "quiet", *ASKED[2:])
    assert all(findings(shell.done(*asked, "-s", "yarn:4", "--dtype", dtype)).values())


def test_model_without_bos_is_checked_on_request(shell: Shell) -> None:
    told = shell.done(*ASKED, "-s", "none", "--bos", "none")
    assert told.startswith("ok    no BOS is asked for: yes\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--lengths", "31"), "texts of 31 tokens cannot be checked, only of 32 to 8192"),
        (("--lengths", "1k"), "the longest text, book.txt, has 400 tokens"),
        (("--tasks", "kv"), "--tasks: a check is of what is read alone"),
        (("--max-memory", "1GiB"), "--max-memory: a check is of what is read alone"),
        (("-o", "out"), "--out: a check is of what is read alone, and keeps nothing; leave it out"),
        (("-s", "yran"), "unknown strategy 'yran'"),
        (("--bos", "wild"), "the tokenizer of tiny has no token 'wild'"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    shell: Shell, arguments: tuple[str, ...], message: str
) -> None:
    assert message in shell.refused(*ASKED, *arguments)


# Broken on purpose.

Breaking = Callable[[pytest.MonkeyPatch], None]


def forgotten_cache(patch: pytest.MonkeyPatch) -> None:
    real = Scorer._read

    def read(self: Scorer, ids: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
        for begin in range(0, ids.shape[1], chunk or ids.shape[1]):
            (_, states), *_ = real(self, ids[:, begin : begin + (chunk or ids.shape[1])], None)
            yield begin, states

    patch.setattr(Scorer, "_read", read)
    patch.setattr(Scorer, "_chunks_are_exact", lambda self: True)


def another_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store, "_head", lambda ids: ())
    patch.setattr(store.Stored, "holds", lambda self, ids, length, rows: self.length >= length)
    real = store.Stored.at

    def at(self: store.Stored, first: int, last: int) -> Tensor:
        return real(self, first, last) if last <= len(self.nll) else self.nll[-(last - first) :]

    patch.setattr(store.Stored, "at", at)


def wrong_length(patch: pytest.MonkeyPatch) -> None:
    real = Study.patched

    @contextmanager
    def patched(self: Study, model: Any, strategy: Any, at: int) -> Iterator[Any]:
        with real(self, model, strategy, at // 2) as found:
            yield found

    patch.setattr(Study, "patched", patched)


def batch_that_leaks(patch: pytest.MonkeyPatch) -> None:
    real = Scorer._read

    def read(self: Scorer, ids: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
        for begin, states in real(self, ids, chunk):
            yield begin, states + 0.01 * (states.mean(0) - states)

    patch.setattr(Scorer, "_read", read)
    patch.setattr(Scorer, "_chunks_are_exact", lambda self: True)


def around(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Breaking:
    """Puts something around a function of the harness."""
    return lambda patch: patch.setattr(owner, name, wrap(getattr(owner, name)))


def in_bfloat16(logits: Tensor, goals: Tensor) -> Tensor:
    return functional.cross_entropy(logits.bfloat16(), goals, reduction="none").float()


def rows_of(change: Callable[[Any, Tensor], Tensor]) -> Breaking:
    """Changes what the rows of a feed-forward part become."""
    return around(feed_forward, "_split", lambda real: lambda forward, rows: real(
        lambda states: change(forward, states), rows))  # fmt: skip


TURNS = itertools.count()
HEAD, LOSS = "head alone = the model's logits", "loss in float32 = in float64"
ROWS, STORED = "feed-forward in rows = at once", "stored = read"
BROKEN: dict[str, tuple[Breaking, str]] = {
    "head": (around(Scorer, "_logits", lambda real: lambda self, h: 1.001 * real(self, h)), HEAD),
    "short loss": (around(nll, "nll_of", lambda _: in_bfloat16), LOSS),
    "goals": (around(nll, "nll_of", lambda real: lambda rows, g: real(rows, g.roll(1))), LOSS),
    "forgotten cache": (forgotten_cache, "dynamic: pieces = at once"),
    "two BOS": (around(corpus, "_encode", lambda real: lambda *given: [0, *real(*given)]),
                "BOS stands once, in front"),
    "mixed rows": (rows_of(lambda forward, states: forward(states.flip(1))), ROWS),
    "lost rows": (rows_of(lambda forward, states: functional.pad(
        forward(states)[:, 1:], (0, 0, 1, 0))), ROWS),
    "another pass": (another_pass, STORED),
    "another place": (around(store.Stored, "at", lambda real: lambda *given: real(*given).roll(1)),
                      STORED),
    "other numbers at each start": (
        around(Scorer, "nll", lambda real: lambda *given: real(*given) + 1e-6 * next(TURNS)),
        "resumed = fresh",
    ),
    "wrong length": (wrong_length, "dynamic: measured = patched"),
    "batch that leaks": (batch_that_leaks, "dynamic: side by side = alone"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_harness_that_is_broken_fails(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    broken, check = BROKEN[name]
    broken(monkeypatch)
    status, out, err = shell(*ASKED, "-s", "dynamic")
    assert (status, err) == (1, "")
    found = findings(out)
    assert not found[check]
    assert len(found) == 11


def test_loss_in_a_shorter_number_type_is_seen_where_the_model_has_one_too(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    BROKEN["short loss"][0](monkeypatch)
    status, out, _ = shell(*ASKED, "-s", "none", "--dtype", "bfloat16")
    assert status == 1
    assert not findings(out)[LOSS]


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (Finding("head", 0.0, True, "alone"), "ok    head: 0.0e+00 nats, alone"),
        (Finding("loss", 0.25, False), "FAIL  loss: 2.5e-01 nats"),
        (Finding("no BOS", None, True), "ok    no BOS: yes"),
    ],
)
def test_finding_is_one_line(finding: Finding, line: str) -> None:
    assert described(finding) == line
