"""Measuring strategies on one loaded model, and the folder that keeps what was measured."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from tiny_eval import (
    BY_LENGTH,
    LENGTHS,
    STATIC,
    TRAINED,
    corpus_of,
    plain_nll,
    save_checkpoint,
    strict_json,
    tiny_causal,
    tree,
    watch_measuring,
)

import ropex
import ropex_eval.run
from ropex.rope import Rope
from ropex_eval.corpus import Corpus
from ropex_eval.measure import Protocol, cost, measure, passes
from ropex_eval.nll import Scorer
from ropex_eval.report import align, format_perplexity, plot, render
from ropex_eval.results import Result, Results
from ropex_eval.run import Study, fingerprint, run, table_path
from ropex_eval.table import METRICS, NllTable, mean_nll

LONG = LENGTHS[-1]
PROTOCOL = Protocol.of(LENGTHS)
ROPE = Rope.standard(8, 10_000.0, TRAINED)
SMALL = Protocol.of((8, 48))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of(tmp_path_factory.mktemp("corpus"), LONG)


@pytest.fixture(scope="module")
def study(checkpoint: Path, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Study:
    small = corpus_of(tmp_path_factory.mktemp("small"), SMALL.longest)
    return Study("tiny", checkpoint, scorer, small, SMALL)


def start(study: Study, out: Path, *texts: str, force: bool = False) -> Results:
    return run(study, [ropex.strategy(text) for text in texts], out, force=force)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """What a file holds, copied: the loaded tensors are views of the file, which may change."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def truncated(corpus: Corpus, length: int) -> Corpus:
    """The same windows, as a run whose longest length is `length` would have them."""
    tokens = length if corpus.bos is None else length - 1
    windows = [dataclasses.replace(window, ids=window.ids[:tokens]) for window in corpus.windows]
    return dataclasses.replace(corpus, windows=tuple(windows))


def measured_alone(scorer: Scorer, corpus: Corpus, length: int, text: str) -> NllTable:
    """The table of one length, as a run of no other lengths has it."""
    protocol = Protocol.of((length,), 4)
    return measure(scorer, truncated(corpus, length), protocol, ropex.strategy(text))


# The protocol.


@pytest.mark.parametrize(
    ("lengths", "targets", "used"),
    [
        ((4096, 512, 512), None, 64),
        ((128, 256), None, 64),
        ((127, 256), None, 63),
        ((8, 96), None, 4),
        ((2, 96), None, 1),
        ((3,), None, 1),
        ((8, 96), 7, 7),
        ((8, 96), 1, 1),
    ],
)
def test_targets_are_64_or_half_of_a_short_length(
    lengths: Sequence[int], targets: int | None, used: int
) -> None:
    protocol = Protocol.of(lengths, targets)
    assert protocol.targets == used
    assert protocol.lengths == tuple(sorted(set(lengths)))
    assert protocol.longest == max(lengths)


@pytest.mark.parametrize(
    ("lengths", "targets", "metrics", "message"),
    [
        ((), None, METRICS, "lengths must be at least 2"),
        ((1, 8), None, METRICS, "lengths must be at least 2"),
        ((0,), None, METRICS, "lengths must be at least 2"),
        ((8, 96), 8, METRICS, "targets is 8, it must be at least 1 and below the .* length, 8"),
        ((8, 96), 0, METRICS, "targets is 0, it must be at least 1"),
        ((8, 96), -1, METRICS, "targets is -1, it must be at least 1"),
        ((8, 96), None, ("local", "global"), "unknown metric 'global'; known: local, fixed, pre"),
        ((8, 96), None, ("",), "unknown metric ''"),
    ],
)
def test_impossible_protocol_is_refused(
    lengths: Sequence[int], targets: int | None, metrics: Sequence[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol.of(lengths, targets, metrics)


@pytest.mark.parametrize(
    ("text", "metrics", "expected"),
    [
        ("yarn:4", METRICS, [("fixed", 8), ("fixed", 24), ("fixed", 48), ("prefix", 96)]),
        ("yarn:4", ("local", "prefix"), [("prefix", 96)]),
        ("none", ("fixed",), [("fixed", 8), ("fixed", 24), ("fixed", 48), ("prefix", 96)]),
        ("dynamic", ("local",), [("prefix", 24), ("prefix", 48), ("prefix", 96)]),
        (
            "dynamic",
            ("fixed",),
            [("fixed", 8), ("fixed", 24), ("fixed", 48), ("prefix", 96)],
        ),
        (
            "dynamic",
            METRICS,
            [
                ("fixed", 8),
                ("prefix", 24),
                ("fixed", 24),
                ("prefix", 48),
                ("fixed", 48),
                ("prefix", 96),
            ],
        ),
    ],
)
def test_passes_are_the_fewest_that_serve_and_end_with_the_longest(
    text: str, metrics: tuple[str, ...], expected: list[tuple[str, int]]
) -> None:
    protocol = Protocol.of(LENGTHS, None, metrics)
    planned = passes(ropex.strategy(text), ROPE, protocol)
    assert sorted(planned) == sorted(expected)
    lengths = [length for _, length in planned]
    assert lengths == sorted(lengths)


def test_cost_grows_linearly_for_weights_and_quadratically_for_attention() -> None:
    model = tiny_causal(num_key_value_heads=4)
    weights = sum(p.numel() for p in model.parameters())
    once, twice = cost(model, 1), cost(model, 2)
    quadratic = (twice - 2 * once) / 2
    assert once - quadratic == weights  # multiply-adds of a token outside attention
    assert quadratic == 2 * 2 * 4 * 8  # queries by keys and weights by values, in each layer
    for length in (10, 1000, 2**17):
        assert cost(model, length) == weights * length + quadratic * length**2


# Measuring.


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("text", ["none", "yarn:4", "logn", "linear:2+ntk:2", "dynamic:4"])
def test_numbers_are_the_definitions(
    causal: Any, scorer: Scorer, tmp_path: Path, text: str, bos: int | None
) -> None:
    corpus = corpus_of(tmp_path, LONG, bos=bos)
    table = measure(scorer, corpus, PROTOCOL, ropex.strategy(text))
    front = [] if bos is None else [bos]
    for length in LENGTHS:
        first, last = [], []
        with ropex.patch(causal, text):
            for window in corpus.windows:
                text_tokens = window.ids.tolist()
                assert len(text_tokens) == LONG - len(front)
                head = torch.tensor([*front, *text_tokens[: length - len(front)]])
                tail = torch.tensor([*front, *text_tokens[LONG - length :]])
                assert len(head) == len(tail) == length
                first.append(plain_nll(causal, head))
                last.append(plain_nll(causal, tail)[-4:])
        for metric, scores in (
            ("prefix", torch.cat(first)),
            ("local", torch.cat([row[-4:] for row in first])),
            ("fixed", torch.cat(last)),
        ):
            mean, tokens = mean_nll(table, metric, length, 4)
            assert tokens == len(scores) == 3 * (length - 1 if metric == "prefix" else 4)
            assert mean == pytest.approx(float(scores.sum()) / tokens, abs=1e-5)


@pytest.mark.parametrize("text", STATIC)
def test_one_pass_for_all_lengths_equals_separate_passes(
    scorer: Scorer, corpus: Corpus, text: str
) -> None:
    together = measure(scorer, corpus, PROTOCOL, ropex.strategy(text))
    assert list(together.prefix) == [LONG]
    for length in LENGTHS:
        alone = measured_alone(scorer, corpus, length, text)
        served = together.prefix[LONG][:, : length - 1]
        torch.testing.assert_close(served, alone.prefix[length], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", BY_LENGTH)
def test_length_with_a_plan_of_its_own_has_exactly_its_own_pass(
    scorer: Scorer, corpus: Corpus, text: str
) -> None:
    together = measure(scorer, corpus, PROTOCOL, ropex.strategy(text))
    assert sorted(together.prefix) == [24, 48, 96]
    for length in (24, 48, 96):
        alone = measured_alone(scorer, corpus, length, text)
        assert torch.equal(together.prefix[length], alone.prefix[length])
        if length < LONG:  # else one pass would have done
            cut = together.prefix[LONG][:, : length - 1]
            assert (cut - together.prefix[length]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("text", "measured_alike"), [("dynamic", True), ("logn", True), ("yarn:4", False)]
)
def test_strategy_that_acts_beyond_the_trained_length_costs_nothing_within(
    scorer: Scorer, corpus: Corpus, text: str, measured_alike: bool
) -> None:
    plain = measure(scorer, corpus, PROTOCOL, ropex.strategy("none"))
    table = measure(scorer, corpus, PROTOCOL, ropex.strategy(text))
    for length in (8, 24):
        values = [mean_nll(one, "prefix", length, 4)[0] for one in (plain, table)]
        assert (values[0] == pytest.approx(values[1], abs=1e-5)) == measured_alike


def test_strategies_swapped_on_one_model_leave_it_bit_identical(
    causal: Any, scorer: Scorer, corpus: Corpus
) -> None:
    def bits() -> dict[str, torch.Tensor]:
        named = [*causal.named_parameters(), *causal.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in named}

    before, config = bits(), copy.deepcopy(causal.config.to_dict())
    weights = [parameter.data_ptr() for parameter in causal.parameters()]
    ids = corpus.inputs(corpus.windows[0], LONG)
    plain = plain_nll(causal, ids)
    for text in (*STATIC, *BY_LENGTH):
        measure(scorer, truncated(corpus, 48), SMALL, ropex.strategy(text))
    after = bits()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert causal.config.to_dict() == config
    assert [parameter.data_ptr() for parameter in causal.parameters()] == weights  # loaded once
    assert torch.equal(plain_nll(causal, ids), plain)


def test_numbers_do_not_depend_on_what_was_measured_before(corpus: Corpus) -> None:
    texts = ("dynamic", "yarn:4", "logn", "none")
    used, small = Scorer(tiny_causal()), truncated(corpus, 48)
    for text in (*texts, *reversed(texts)):
        table = measure(used, small, SMALL, ropex.strategy(text))
        fresh = measure(Scorer(tiny_causal()), small, SMALL, ropex.strategy(text))
        assert torch.equal(table.prefix[48], fresh.prefix[48])
        assert torch.equal(table.fixed[8], fresh.fixed[8])


def test_model_is_restored_when_measuring_is_interrupted(
    causal: Any, scorer: Scorer, corpus: Corpus
) -> None:
    ids = corpus.inputs(corpus.windows[0], LONG)
    plain = plain_nll(causal, ids)

    def interrupt(length: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(scorer, corpus, PROTOCOL, ropex.strategy("yarn:4"), advance=interrupt)
    assert torch.equal(plain_nll(causal, ids), plain)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic"])
def test_progress_is_told_of_every_pass(scorer: Scorer, corpus: Corpus, text: str) -> None:
    told: list[int] = []
    strategy = ropex.strategy(text)
    measure(scorer, corpus, PROTOCOL, strategy, advance=told.append)
    planned = [length for _, length in passes(strategy, ROPE, PROTOCOL)]
    assert Counter(told) == Counter(planned * len(corpus.windows))


def test_bar_ends_exactly_full(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, total: float, **style: Any) -> None:
            self.total, self.done = total, 0.0
            bars.append(self)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, amount: float) -> None:
            self.done += amount

        def set_description_str(self, text: str) -> None:
            pass

    monkeypatch.setattr(ropex_eval.run, "tqdm", Bar)
    start(study, tmp_path, "none", "dynamic")
    start(study, tmp_path, "none", "dynamic", "yarn:4")
    assert all(bar.done == bar.total > 0 for bar in bars)
    assert bars[1].total < bars[0].total  # only what is left counts


# The folder of a run.


def test_run_writes_its_files_and_nothing_else(study: Study, tmp_path: Path) -> None:
    start(study, tmp_path / "out", "none", "yarn:4", "linear:2+ntk:1.7")
    assert list(tree(tmp_path / "out")) == [
        "nll",
        "nll/linear_2_ntk_1.7.safetensors",
        "nll/none.safetensors",
        "nll/yarn_4.safetensors",
        "results.csv",
        "results.json",
    ]


def test_results_hold_every_number_and_how_it_came_about(study: Study, tmp_path: Path) -> None:
    texts = ["none", "yarn:4", "dynamic"]
    start(study, tmp_path, *texts)
    content = strict_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [(row["strategy"], row["metric"], row["length"]) for row in content["results"]] == [
        (text, metric, length) for text in texts for metric in METRICS for length in (8, 48)
    ]
    for row in content["results"]:
        table, metadata = NllTable.load(table_path(tmp_path, row["strategy"]))
        assert metadata["strategy"] == row["strategy"]
        mean, tokens = mean_nll(table, row["metric"], row["length"], 4)
        assert (row["nll"], row["tokens"]) == (mean, tokens)
        assert row["perplexity"] == math.exp(mean)
        assert tokens == 3 * (row["length"] - 1 if row["metric"] == "prefix" else 4)
    about = content["about"]
    assert about["model"]["trained_length"] == TRAINED
    assert about["model"]["dtype"] == "float32"
    assert about["data"]["documents"] == ["a.txt", "b.txt"]
    assert about["data"]["windows"] == 3
    assert about["data"]["bos"] == 0
    assert about["protocol"]["lengths"] == [8, 48]
    assert about["protocol"]["targets"] == 4
    known = content["strategies"]
    assert list(known) == texts
    assert [known[text]["length_class"] for text in texts] == ["static", "static", "per_length"]
    assert len({known[text]["inv_freq_sha256"] for text in texts}) == 3
    assert known["yarn:4"]["attention_scale"] == 0.1 * math.log(4) + 1


def test_csv_holds_the_numbers_of_the_json(study: Study, tmp_path: Path) -> None:
    results = start(study, tmp_path, "none", "yarn:4")
    text = (tmp_path / "results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [
        Result(
            row["strategy"],
            row["metric"],
            int(row["length"]),
            float(row["nll"]),
            float(row["perplexity"]),
            int(row["tokens"]),
        )
        for row in rows
    ] == list(results.results)
    assert Results.load(tmp_path).results == results.results


@pytest.mark.parametrize(("nll", "perplexity"), [(1e4, math.inf), (math.nan, math.nan)])
def test_numbers_that_json_does_not_have_are_kept_in_json(
    tmp_path: Path, nll: float, perplexity: float
) -> None:
    about: dict[str, Any] = {"model": {}, "data": {}}
    Results(about, {"none": {}}, (Result("none", "local", 8, nll, perplexity, 4),)).save(tmp_path)
    strict_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    (row,) = Results.load(tmp_path).results
    assert (row.nll, row.perplexity) == pytest.approx((nll, perplexity), nan_ok=True)


def test_second_start_measures_nothing_and_changes_nothing(
    study: Study, tmp_path: Path, measured: list[str]
) -> None:
    first = start(study, tmp_path, "none", "yarn:4", "dynamic")
    before = tree(tmp_path)
    assert measured == ["none", "yarn:4", "dynamic"]
    again = start(study, tmp_path, "none", "yarn:4", "dynamic")
    assert (again.results, again.strategies) == (first.results, first.strategies)
    assert len(measured) == 3
    assert tree(tmp_path) == before


def test_strategy_is_the_same_in_any_spelling(
    study: Study, tmp_path: Path, measured: list[str]
) -> None:
    start(study, tmp_path, "yarn:4", "yarn:factor=4.0")
    start(study, tmp_path, "YARN:factor=4,beta_fast=32", "yarn:4")
    assert measured == ["yarn:4"]


def test_added_strategy_is_measured_alone_and_joins_the_others(
    study: Study, tmp_path: Path, measured: list[str]
) -> None:
    first = start(study, tmp_path, "none", "yarn:4")
    stored = {text: table_path(tmp_path, text).read_bytes() for text in ("none", "yarn:4")}
    both = start(study, tmp_path, "linear:4")
    assert measured == ["none", "yarn:4", "linear:4"]
    assert list(both.strategies) == ["none", "yarn:4", "linear:4"]
    assert both.results[: len(first.results)] == first.results
    assert {row.strategy for row in both.results[len(first.results) :]} == {"linear:4"}
    assert all(table_path(tmp_path, text).read_bytes() == old for text, old in stored.items())


def test_what_another_process_adds_meanwhile_is_kept(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*given: Any, **others: Any) -> NllTable:
        monkeypatch.setattr(ropex_eval.run, "measure", measure)
        start(study, tmp_path, "none")
        return measure(*given, **others)

    monkeypatch.setattr(ropex_eval.run, "measure", slow)
    assert list(start(study, tmp_path, "yarn:4").strategies) == ["none", "yarn:4"]


def test_continued_run_equals_one_that_was_never_stopped(study: Study, tmp_path: Path) -> None:
    for text in ("none", "dynamic", "yarn:4"):
        start(study, tmp_path / "parts", text)
    whole = start(study, tmp_path / "whole", "none", "dynamic", "yarn:4")
    assert Results.load(tmp_path / "parts").results == whole.results
    for text in ("none", "dynamic", "yarn:4"):
        parts = tensors(table_path(tmp_path / "parts", text))
        assert same(parts, tensors(table_path(tmp_path / "whole", text)))


def test_interrupted_run_keeps_what_is_finished(
    study: Study, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        before = watch_measuring(patched, {"yarn:4": KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            start(study, tmp_path, "none", "yarn:4", "linear:4")
    kept = Results.load(tmp_path)
    assert list(kept.strategies) == ["none"]
    assert before == ["none"]
    start(study, tmp_path, "none", "yarn:4", "linear:4")
    assert measured == ["yarn:4", "linear:4"]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff" * 200)


def removed(path: Path) -> None:
    path.unlink()


def of_another_run(path: Path) -> None:
    table, metadata = NllTable.load(path)
    table.save(path, {**metadata, "key": "0" * 64})


def of_another_strategy(path: Path) -> None:
    table, metadata = NllTable.load(path)
    table.save(path, {**metadata, "strategy": "linear:4"})


def without_metadata(path: Path) -> None:
    table, _ = NllTable.load(path)
    table.save(path, {})


def with_other_tensors(path: Path) -> None:
    metadata = NllTable.load(path)[1]
    save_file({"weights": torch.zeros(2)}, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        cut_off,
        emptied,
        garbage,
        removed,
        of_another_run,
        of_another_strategy,
        without_metadata,
        with_other_tensors,
    ],
)
def test_damaged_table_is_measured_again_and_no_other(
    study: Study, tmp_path: Path, measured: list[str], damage: Callable[[Path], None]
) -> None:
    first = start(study, tmp_path, "none", "yarn:4")
    whole = tensors(table_path(tmp_path, "yarn:4"))
    damage(table_path(tmp_path, "yarn:4"))
    again = start(study, tmp_path, "none", "yarn:4")
    assert measured == ["none", "yarn:4", "yarn:4"]
    assert again.results == first.results
    assert same(tensors(table_path(tmp_path, "yarn:4")), whole)


def other_text(study: Study, folder: Path) -> Study:
    turned = [dataclasses.replace(w, ids=w.ids.flip(0)) for w in study.corpus.windows]
    return dataclasses.replace(
        study, corpus=dataclasses.replace(study.corpus, windows=tuple(turned))
    )


def fewer_windows(study: Study, folder: Path) -> Study:
    windows = study.corpus.windows[:2]
    return dataclasses.replace(study, corpus=dataclasses.replace(study.corpus, windows=windows))


def no_bos(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, corpus=corpus_of(folder / "text", SMALL.longest, bos=None))


def other_lengths(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, protocol=Protocol.of((8, 24, 48)))


def other_targets(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, protocol=Protocol.of((8, 48), 3))


def other_metrics(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, protocol=Protocol.of((8, 48), None, ("local",)))


def other_weights(study: Study, folder: Path) -> Study:
    checkpoint = save_checkpoint(folder / "other", seed=1)
    return dataclasses.replace(study, folder=checkpoint, scorer=Scorer(tiny_causal(seed=1)))


def other_trained_length(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, trained_length=16)


def other_dtype(study: Study, folder: Path) -> Study:
    return dataclasses.replace(study, scorer=Scorer(tiny_causal().to(torch.bfloat16)))


OTHER_RUNS = [
    other_text,
    fewer_windows,
    no_bos,
    other_lengths,
    other_targets,
    other_metrics,
    other_weights,
    other_trained_length,
    other_dtype,
]


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_another_run_in_the_folder_is_refused_and_every_byte_stays(
    study: Study, tmp_path: Path, measured: list[str], change: Callable[[Study, Path], Study]
) -> None:
    out = tmp_path / "out"
    start(study, out, "none")
    before = tree(out)
    other = change(study, tmp_path)
    with pytest.raises(FileExistsError, match="holds a run with another model, text or protocol"):
        start(other, out, "none", "yarn:4")
    assert tree(out) == before
    assert measured == ["none"]


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_force_replaces_another_run_and_measures_anew(
    study: Study, tmp_path: Path, measured: list[str], change: Callable[[Study, Path], Study]
) -> None:
    out = tmp_path / "out"
    start(study, out, "none", "linear:4")
    other = change(study, tmp_path)
    replaced = start(other, out, "none", force=True)
    assert measured == ["none", "linear:4", "none"]
    assert list(replaced.strategies) == ["none"]
    assert start(other, tmp_path / "fresh", "none").results == replaced.results


def test_force_on_the_same_run_throws_nothing_away(
    study: Study, tmp_path: Path, measured: list[str]
) -> None:
    start(study, tmp_path, "none", "yarn:4")
    assert list(start(study, tmp_path, "none", force=True).strategies) == ["none", "yarn:4"]
    assert measured == ["none", "yarn:4"]


def test_names_of_model_and_text_do_not_matter(
    study: Study, tmp_path: Path, measured: list[str]
) -> None:
    start(study, tmp_path / "out", "none")
    windows = [dataclasses.replace(w, document="moved-" + w.document) for w in study.corpus.windows]
    moved = dataclasses.replace(
        study,
        model_id="elsewhere",
        folder=save_checkpoint(tmp_path / "copy"),
        corpus=dataclasses.replace(study.corpus, source="elsewhere", windows=tuple(windows)),
    )
    start(moved, tmp_path / "out", "none")
    assert measured == ["none"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b"\xff\xfe",
        b'{"schema": 1}',
        b'{"schema": 2, "about": {}, "strategies": {}, "results": []}',
        b'{"schema": 1, "about": {}, "strategies": {}, "results": [{"x": 1}]}',
        b'{"schema": 1, "about": {}, "strategies": {}, "results": []}',
        b'{"schema": 1, "about": [], "strategies": {}, "results": []}',
    ],
)
def test_results_that_are_not_a_runs_are_refused_and_stay(
    study: Study, tmp_path: Path, measured: list[str], content: bytes
) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises((ValueError, FileExistsError)):
        start(study, tmp_path, "none")
    assert tree(tmp_path) == {"results.json": content}
    assert measured == []
    start(study, tmp_path, "none", force=True)
    assert list(Results.load(tmp_path).strategies) == ["none"]


def test_folder_of_other_files_is_refused_and_stays(study: Study, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds other files; give another folder, or --force"):
        start(study, tmp_path, "none")
    assert tree(tmp_path) == {"thesis.txt": b"years"}
    start(study, tmp_path, "none", force=True)
    assert (tmp_path / "thesis.txt").read_bytes() == b"years"


def test_file_in_place_of_the_folder_is_refused_and_stays(study: Study, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(FileExistsError, match="is a file; give a folder"):
            start(study, tmp_path / "out", "none", force=force)
    assert tree(tmp_path) == {"out": b"years"}


@pytest.mark.parametrize("text", ["yarn:length=16", "logn+logn"])
def test_strategy_that_does_not_fit_the_model_is_refused_before_any_is_measured(
    study: Study, tmp_path: Path, measured: list[str], text: str
) -> None:
    with pytest.raises(ValueError, match=r"longer length|scaled already"):
        start(study, tmp_path / "out", "none", text)
    assert measured == []


def test_fingerprint_follows_config_and_weights_alone(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "tiny")
    seen = [fingerprint(checkpoint)]
    (checkpoint / "notes.txt").write_text("mine", encoding="utf-8")
    (checkpoint / "tokenizer.json").unlink()
    assert fingerprint(checkpoint) == seen[0]
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    seen.append(fingerprint(checkpoint))
    config.write_text(config.read_text(encoding="utf-8").replace("32", "64"), encoding="utf-8")
    seen.append(fingerprint(checkpoint))
    weights.rename(checkpoint / "model-2.safetensors")
    seen.append(fingerprint(checkpoint))
    assert len(set(seen)) == 4


# What a person sees.


def results_of(
    values: dict[str, dict[str, list[float]]], lengths: list[int], trained: int = TRAINED
) -> Results:
    """Results from metric to strategy to perplexities."""
    about = {
        "model": {"id": "tiny", "trained_length": trained},
        "protocol": {"lengths": lengths, "targets": 4, "metrics": list(values)},
    }
    rows = [
        Result(text, metric, length, math.log(value) if value > 0 else value, value, 12)
        for metric, table in values.items()
        for text, perplexities in table.items()
        for length, value in zip(lengths, perplexities, strict=True)
    ]
    return Results(about, {row.strategy: {} for row in rows}, tuple(rows))


def test_table_has_strategies_down_and_lengths_across() -> None:
    values = {
        "local": {"none": [9.876, 12345.6, math.inf], "yarn:4": [10.04, 11.0, 2.5e6]},
        "prefix": {"none": [1.0, 99.96, 123.4], "yarn:4": [1.5, 2.0, 3.0]},
    }
    shown = render(results_of(values, [8, 1024, 1536]))
    assert shown == (
        "local: perplexity of the last 4 of the first L tokens\n"
        "L =        8     1k  1536\n"
        "none    9.88  12300   inf\n"
        "yarn:4  10.0   11.0   2e6\n"
        "\n"
        "prefix: perplexity of all of the first L tokens\n"
        "L =        8    1k  1536\n"
        "none    1.00   100   123\n"
        "yarn:4  1.50  2.00  3.00"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0, "1.00"),
        (0.9996, "1.00"),
        (5.678, "5.68"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (12.34, "12.3"),
        (99.94, "99.9"),
        (99.96, "100"),
        (123.4, "123"),
        (999.6, "1000"),
        (12_345.6, "12300"),
        (994_999.0, "995000"),
        (999_999.0, "1e6"),
        (1e6, "1e6"),
        (2.6e9, "3e9"),
        (1e100, "1e100"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_perplexity_is_shown_in_three_digits(value: float, shown: str) -> None:
    assert format_perplexity(value) == shown


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert align([["a", "b"], ["long", "1"], ["x", "100"]]) == "a       b\nlong    1\nx     100"


@pytest.mark.parametrize(
    "values",
    [
        {"local": {"none": [3.0, 4.0], "yarn:4": [3.5, 3.6]}},
        {metric: {"none": [3.0, 4000.0]} for metric in METRICS},
        {"local": {"none": [3.0, math.inf], "yarn:4": [3.5, 3.6]}},
        {"local": {"none": [math.inf, math.inf]}},
        {"local": {"none": [math.nan, 3.0]}},
        {"local": {"none": [math.nan, math.nan]}},
        {"local": {"none": [1e300, 3.0]}},
        {"local": {"none": [3.0, 3.0]}},
    ],
)
def test_picture_is_drawn_whatever_the_numbers(
    tmp_path: Path, values: dict[str, dict[str, list[float]]]
) -> None:
    plot(results_of(values, [24, 100]), tmp_path / "ppl.png")
    picture = (tmp_path / "ppl.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5_000
    assert [path.name for path in tmp_path.iterdir()] == ["ppl.png"]


def picture(results: Results, folder: Path) -> Figure:
    """The figure that is saved."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def remembered(self: Figure, *given: Any, **others: Any) -> None:
        drawn.append(self)
        save(self, *given, **others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", remembered)
        plot(results, folder / "ppl.png")
    return drawn[0]


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_xticklabels()]


def test_picture_shows_every_strategy_and_the_trained_length(tmp_path: Path) -> None:
    values = {"local": {"none": [3.0, 40.0], "yarn:4": [3.5, 3.6]}, "prefix": {"none": [3.0, 9.0]}}
    values["prefix"]["yarn:4"] = [3.4, 3.5]
    figure = picture(results_of(values, [16, 64]), tmp_path)
    for axis, metric in zip(figure.axes, values, strict=True):
        lines = {str(line.get_label()): line for line in axis.get_lines()}
        for text, perplexities in values[metric].items():
            assert np.asarray(lines[text].get_xdata()).tolist() == [16, 64]
            assert np.asarray(lines[text].get_ydata()).tolist() == perplexities
        assert [TRAINED, TRAINED] in [
            np.asarray(line.get_xdata()).tolist() for line in axis.get_lines()
        ]
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert labels(axis) == ["16", "64"]


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ([1000, 1500, 2500], ["1000", "1500", "2500"]),
        ([1024 * n for n in range(1, 17)], ["1k", "2k", "4k", "8k", "16k"]),
        ([2**n for n in range(6, 21)], ["64", "256", "1k", "4k", "16k", "64k", "256k", "1M"]),
        ([24], ["24"]),
    ],
)
def test_picture_names_lengths_that_were_measured(
    tmp_path: Path, lengths: list[int], shown: list[str]
) -> None:
    figure = picture(results_of({"local": {"none": [3.0] * len(lengths)}}, lengths), tmp_path)
    assert labels(figure.axes[0]) == shown


@pytest.mark.parametrize(
    "ends", [(3.1, 3.15), (3.0, 3.0), (9.7, 9.9), (1.0, 70.0), (3.0, 9e5), (99.0, 101.0)]
)
def test_picture_has_some_perplexities_to_read_off(
    tmp_path: Path, ends: tuple[float, float]
) -> None:
    axis = picture(results_of({"local": {"none": [*ends]}}, [24, 96]), tmp_path).axes[0]
    low, high = axis.get_ylim()
    assert low < ends[0] <= ends[1] < high
    assert 3 <= sum(low <= tick <= high for tick in axis.get_yticks()) <= 10
    assert all(label.get_text() for label in axis.get_yticklabels())


@pytest.mark.parametrize("huge", [math.inf, 1e6, 1e300])
def test_picture_marks_what_is_above_it(tmp_path: Path, huge: float) -> None:
    values = {"local": {"none": [3.0, 4.0], "yarn:4": [3.5, huge]}}
    figure = picture(results_of(values, [24, 96]), tmp_path)
    top = figure.axes[0].get_ylim()[1]
    assert top < 10
    (marks,) = (line for line in figure.axes[0].get_lines() if line.get_marker() == "^")
    assert np.asarray(marks.get_xydata()).tolist() == [[96, top]]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "1e6 or more"


def test_picture_names_strategies_beside_the_curves_and_as_they_are(tmp_path: Path) -> None:
    names = ["none", "a$x_1$", "yarn:factor=4,beta_fast=16,beta_slow=2,truncate=false+logn"]
    names += [f"linear:{n}" for n in range(2, 32)]
    values = {metric: {name: [3.0, 4.0] for name in names} for metric in METRICS}
    figure = picture(results_of(values, [24, 96]), tmp_path)
    figure.draw_without_rendering()  # at the resolution that boxes are asked for in
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert not any(text.get_parse_math() for text in legend.get_texts())
    box = legend.get_window_extent()
    assert box.x0 > max(axis.bbox.x1 for axis in figure.axes)
    assert (box.x1, box.y1) < (figure.bbox.x1, figure.bbox.y1)
    assert box.y0 > 0


@pytest.mark.parametrize(("trained", "shown"), [(8, False), (16, True), (160, True), (4096, False)])
def test_picture_is_not_stretched_to_a_trained_length_far_away(
    tmp_path: Path, trained: int, shown: bool
) -> None:
    results = results_of({"local": {"none": [3.0, 4.0]}}, [24, 96], trained)
    figure = picture(results, tmp_path)
    low, high = figure.axes[0].get_xlim()
    assert 24 / 2.2 < low < 24 < 96 < high < 96 * 2.2
    assert (low < trained < high) == shown
    assert figure.get_suptitle().endswith("(dotted)") == shown
