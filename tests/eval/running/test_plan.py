"""What a run would take, told from the config alone, and what it then takes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ropex.checkpoints.loading import load_skeleton
from ropex_eval.measure.losses import Scorer
from ropex_eval.measure.memory import Shape, chunk_for
from ropex_eval.running import cost as plan
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from ropex_eval.study.store import Store
from tests.support.models import save_checkpoint, tiny_tokenizer
from tests.support.rounding import TERMS, assert_alike, rounding
from tests.support.shell import Shell
from tests.support.tiny_eval import Watch, start, study_of, words

LONG = 131_072
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 32,
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip

# By hand, from the table of published terms: two bytes a number.
WEIGHTS = 2 * 8_030_261_248
LAYER = 2 * LONG * (3 * 4096 + 2 * 32 * 128 + 2 * 8 * 128)  # hidden, norm, qkv, attention output
CACHE = 2 * LONG * 32 * 2 * 8 * 128
INSIDE = 2 * 3 * 14336  # of one feed-forward part, a row


@pytest.fixture
def shell(shell: Shell, tmp_path: Path) -> Shell:
    save_checkpoint(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return shell


@pytest.fixture
def shape(shell: Shell) -> Shape:
    """Of Llama 3.1 8B."""
    return Shape.of(load_skeleton(shell.folder / "llama"), torch.bfloat16)


def rows(told: str) -> dict[str, tuple[int, int]]:
    """Strategy to passes and tokens of the printed table."""
    table = told.split("\n\n")[1].splitlines()
    assert table[0].split() == ["strategy", "passes", "tokens", "time"]
    split = (line.split() for line in table[1:])
    return {text: (int(a.replace(",", "")), int(b.replace(",", ""))) for text, a, b, *_ in split}


# Passes.


@pytest.mark.parametrize(
    "names", ["local,fixed,prefix", "sliding", "rolling,disjoint", "longppl,overlapping"]
)
def test_passes_and_tokens_are_those_of_the_run_that_follows(
    shell: Shell, causal: Any, measured: Watch, names: str
) -> None:
    asked = ("--lengths", "8,24,48", "--excerpt", 90, "--excerpts", 3, "--definitions", names)
    chosen = ("yarn:4", "dynamic", "yarn:4+logn")
    told = rows(
        shell.done("eval", "--dry-run", "tiny", *asked, *(p for s in chosen for p in ("-s", s)))
    )
    assert list(told) == ["none", *chosen]
    for text in told:
        protocol = Protocol.of((8, 24, 48), None, names.split(","), None, 90, evaluator=text)
        study = study_of(shell.folder, shell.folder / "tiny", causal, protocol)
        measured.take()
        start(study, shell.folder / text.replace(":", "-"), text)
        lengths = [each.length for _, each in measured.passes]
        assert (len(lengths), sum(lengths)) == told[text]
    assert told["dynamic"] > told["none"]
    assert not list(shell.folder.glob("runs"))


def test_plan_reads_no_weights_and_no_text_and_writes_nothing(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(shell.folder.rglob("*"))
    told = shell.done("eval", "--dry-run", "tiny")
    assert "trained at 32 tokens, float32" in told
    assert "32 excerpts of 128 tokens" in told
    assert list(rows(told)) == ["none", "yarn:length=128"]
    assert sorted(shell.folder.rglob("*")) == before


def test_plan_asks_the_hub_for_the_small_files_alone(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(model: str, weights: bool) -> Path:
        asked.append((model, weights))
        return shell.folder / "tiny"

    monkeypatch.setattr("ropex.checkpoints.find._download", download)
    shell.done("eval", "--dry-run", "meta-llama/Llama-3.1-8B", "--lengths", "8")
    assert asked == [("meta-llama/Llama-3.1-8B", False)]


def test_work_of_a_strategy_is_that_of_its_passes(shell: Shell, causal: Any) -> None:
    study = study_of(shell.folder, shell.folder / "tiny", causal, Protocol.of((8, 48)))
    shape = Shape.of(causal)
    found = plan.cost(shape, _passes(study, "none"), None)
    matrices = sum(p.numel() for p in causal.parameters())
    # A pass of 8 and one of 48 tokens for each excerpt; scores and values of two layers of 32.
    assert found.work == 3 * sum(n * (matrices + 2 * 32 * n) for n in (8, 48))
    assert (found.passes, found.tokens, found.longest) == (6, 168, 48)


def _passes(study: Any, text: str) -> Any:
    import ropex
    from ropex_eval.study.passes import passes

    return passes(study.corpus, study.protocol, ropex.strategy(text), study.rope)


# Memory.


def test_memory_of_llama_at_its_longest_is_that_of_the_published_terms(shape: Shape) -> None:
    assert shape.weights * 2 == WEIGHTS
    logits = 32 * 2**20  # rows of them
    assert shape.held() + shape.peak(LONG) == WEIGHTS + LAYER + 4096 * INSIDE + logits
    assert 21e9 < shape.held() + shape.peak(LONG) < 23.3e9  # the table holds more rows of logits
    chunk = 4096
    pieces = WEIGHTS + CACHE + (LAYER // LONG + INSIDE) * chunk + logits
    assert shape.held() + shape.peak(LONG, chunk) == pieces
    assert 33e9 < pieces < 34.8e9
    assert chunk_for(shape, LONG, 32 * 10**9) is None
    with pytest.raises(MemoryError):
        chunk_for(shape, LONG, 20 * 10**9)


def test_eager_attention_takes_its_scores_and_pieces_save_them(shell: Shell) -> None:
    model = load_skeleton(shell.folder / "llama")
    model.config._attn_implementation = "eager"
    shape = Shape.of(model, torch.bfloat16)
    scores = 4 * 32 * LONG**2  # the least of what was measured, a number of heads by length squared
    assert shape.peak(LONG) > scores
    chunk = chunk_for(shape, LONG, 80 * 10**9)
    assert chunk is not None
    assert shape.held() + shape.peak(LONG, chunk) <= 80 * 10**9
    assert shape.held() + shape.peak(LONG, 2 * chunk) > 80 * 10**9


def test_plan_of_llama_fits_a_card_of_32_gigabytes_at_once(shell: Shell) -> None:
    asked = ("--lengths", "2k..128k", "--dtype", "bfloat16", "-s", "yarn:16")
    told = shell.done("eval", "--dry-run", "llama", *asked, "--max-memory", "32GB")
    total = (WEIGHTS + LAYER + 4096 * INSIDE + 32 * 2**20) / 2**30
    assert "8.03 billion weights, trained at 8k tokens, bfloat16" in told
    assert f"memory  {total:.1f} GiB at most: {WEIGHTS / 2**30:.1f} GiB of weights" in told
    assert "a pass of 128k tokens, read at once" in told
    # Seven lengths; fixed targets want a start of their own for all but the longest.
    assert rows(told)["yarn:16"] == (7 * 32, 32 * (2**18 - 2**11))


def test_plan_that_does_not_fit_is_refused_with_what_would(shell: Shell) -> None:
    asked = ("--lengths", "128k", "--dtype", "bfloat16", "--max-memory", "20GB")
    told = shell.refused("eval", "--dry-run", "llama", *asked)
    least = (WEIGHTS + LAYER + 4096 * INSIDE + 32 * 2**20) / 2**30
    assert f"131072 tokens take {least:.1f} GiB" in told  # pieces would take more: their cache
    assert "18.6 GiB are allowed" in told
    assert "--max-memory" in told
    more = f"{int(least * 2**30) + 2**20}"
    assert "at once" in shell.done(
        "eval", "--dry-run", "llama", *asked[:-1], f"{int(more) // 2**20 + 1}MiB"
    )


@pytest.mark.parametrize(("limit", "pieces"), [("40MB", "at once"), ("35MB", "in pieces of 512")])
def test_run_keeps_to_the_memory_that_was_planned_with_the_same_numbers(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, limit: str, pieces: str
) -> None:
    save_checkpoint(shell.folder / "tiny")
    (shell.folder / "book.txt").write_text(words(4100), encoding="utf-8")
    small = ("--lengths", "64,2k", "--excerpts", 2, "--data", "book.txt")
    asked = ("tiny", *small, "-s", "dynamic", "-s", "yarn:4+logn")
    assert f"read {pieces}\n" in shell.done("eval", "--dry-run", *asked, "--max-memory", limit)
    shell.done("eval", *asked, "-o", "free")
    chunks = []
    real = Scorer.nll

    def nll(self: Scorer, ids: Any, goals: Any, stretches: Any, chunk: Any = None) -> Any:
        chunks.append((ids.shape[1], chunk))
        return real(self, ids, goals, stretches, chunk)

    monkeypatch.setattr(Scorer, "nll", nll)
    shell.done("eval", *asked, "-o", "bound", "--max-memory", limit)
    size = int(pieces.split()[-1]) if pieces[-1].isdigit() else None
    assert set(chunks) == {(64, None), (2048, size)}
    free, bound = (Store(shell.folder / name / "nll") for name in ("free", "bound"))
    assert len(list(_every(free))) == len(list(_every(bound))) > 6
    off = 0.0
    for key, each in _every(free):
        other = bound.find(key, each.ids, each.length, each.rows)
        assert other is not None
        assert_alike(other.nll, each.nll, TERMS + 2 * 2048)  # keys of two layers
        off = max(off, rounding(each.nll, TERMS + 2 * 2048))
    pairs = zip(*(Results.load(shell.folder / n).results for n in ("free", "bound")), strict=True)
    assert all(a.nll == pytest.approx(b.nll, abs=off) for a, b in pairs)


def _every(store: Store) -> Any:
    return ((key, each) for (key, _), found in store._by_head.items() for each in found)


# Time.


def test_speed_is_a_share_of_that_of_products_of_matrices(
    causal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.25 * next(turns))
    # Each product takes a quarter of a second: 512 rows, and widths of at least 64.
    assert plan.speed(Shape.of(causal), "cpu", torch.float32) == 0.7 * 512 * 64 * 64 / 0.25


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (2460, "41 min"), (5400, "1.5 h")],
)
def test_time_is_told_as_people_say_it(seconds: float, words: str) -> None:
    assert plan.in_words(seconds) == words


def test_time_of_the_run_is_the_sum_of_the_strategies(shell: Shell) -> None:
    told = shell.done("eval", "--dry-run", "llama", "--lengths", "8k,128k", "--dtype", "bfloat16")
    found = re.search(r"time +about (.+) on this cpu", told)
    assert found
    assert found[1].endswith((" h", " days"))
