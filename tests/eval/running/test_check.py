"""Proof on a model: it holds for a harness that is right, and for none that is broken."""

from __future__ import annotations

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


def wrong_head(patch: pytest.MonkeyPatch) -> None:
    real = Scorer._logits
    patch.setattr(Scorer, "_logits", lambda self, states: 1.001 * real(self, states))


def short_loss(patch: pytest.MonkeyPatch) -> None:
    def nll_of(logits: Tensor, goals: Tensor) -> Tensor:
        return functional.cross_entropy(logits.bfloat16(), goals, reduction="none").float()

    patch.setattr(nll, "nll_of", nll_of)


def shifted_goals(patch: pytest.MonkeyPatch) -> None:
    real = nll.nll_of
    patch.setattr(nll, "nll_of", lambda logits, goals: real(logits, goals.roll(1)))


def forgotten_cache(patch: pytest.MonkeyPatch) -> None:
    real = Scorer._read

    def read(self: Scorer, ids: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
        for begin in range(0, ids.shape[1], chunk or ids.shape[1]):
            (_, states), *_ = real(self, ids[:, begin : begin + (chunk or ids.shape[1])], None)
            yield begin, states

    patch.setattr(Scorer, "_read", read)
    patch.setattr(Scorer, "_chunks_are_exact", lambda self: True)


def doubled_bos(patch: pytest.MonkeyPatch) -> None:
    real = corpus._encode
    patch.setattr(corpus, "_encode", lambda *given: [0, *real(*given)])


def mixed_rows(patch: pytest.MonkeyPatch) -> None:
    real = feed_forward._split

    def split(forward: Callable[..., Any], rows: int) -> Callable[..., Any]:
        return real(lambda states: forward(states.flip(1)), rows)

    patch.setattr(feed_forward, "_split", split)


def lost_rows(patch: pytest.MonkeyPatch) -> None:
    real = feed_forward._split

    def split(forward: Callable[..., Any], rows: int) -> Callable[..., Any]:
        return real(lambda states: functional.pad(forward(states)[:, 1:], (0, 0, 1, 0)), rows)

    patch.setattr(feed_forward, "_split", split)


def another_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(store, "_head", lambda ids: ())
    patch.setattr(store.Stored, "holds", lambda self, ids, length, rows: self.length >= length)
    real = store.Stored.at

    def at(self: store.Stored, first: int, last: int) -> Tensor:
        return real(self, first, last) if last <= len(self.nll) else self.nll[-(last - first) :]

    patch.setattr(store.Stored, "at", at)


def another_place(patch: pytest.MonkeyPatch) -> None:
    real = store.Stored.at
    patch.setattr(store.Stored, "at", lambda self, a, b: real(self, a, b).roll(1))


def other_numbers_at_each_start(patch: pytest.MonkeyPatch) -> None:
    real, turns = Scorer.nll, iter(range(10_000))

    def noisy(self: Scorer, *given: Any) -> Tensor:
        return real(self, *given) + 1e-6 * next(turns)

    patch.setattr(Scorer, "nll", noisy)


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


BROKEN: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    wrong_head: "head alone = the model's logits", short_loss: "loss in float32 = in float64",
    shifted_goals: "loss in float32 = in float64", forgotten_cache: "dynamic: pieces = at once",
    doubled_bos: "BOS stands once, in front", mixed_rows: "feed-forward in rows = at once",
    lost_rows: "feed-forward in rows = at once", another_pass: "stored = read",
    another_place: "stored = read", other_numbers_at_each_start: "resumed = fresh",
    wrong_length: "dynamic: measured = patched", batch_that_leaks: "dynamic: side by side = alone",
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_harness_that_is_broken_fails(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, broken: Callable[[pytest.MonkeyPatch], None]
) -> None:
    broken(monkeypatch)
    status, out, err = shell(*ASKED, "-s", "dynamic")
    assert (status, err) == (1, "")
    found = findings(out)
    assert not found[BROKEN[broken]]
    assert len(found) == 11


def test_loss_in_a_shorter_number_type_is_seen_where_the_model_has_one_too(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_loss(monkeypatch)
    status, out, _ = shell(*ASKED, "-s", "none", "--dtype", "bfloat16")
    assert status == 1
    assert not findings(out)["loss in float32 = in float64"]


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
