"""The folder of a run, and what is in it."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ropex
from ropex_eval.scores.protocol import USUAL, Protocol
from ropex_eval.scores.results import Result, Results
from ropex_eval.study.study import Study, checkpoint_fingerprint
from tests.support.models import TRAINED, save_checkpoint, tiny_causal
from tests.support.rounding import LOSS
from tests.support.tiny_eval import BY_LENGTH, STATIC, plain_nll, start, strict_json, tree

SMALL = Protocol.of((8, 48))


@pytest.fixture
def study(make: Callable[..., Study]) -> Study:
    return make(SMALL)


def test_run_writes_its_files_and_nothing_else(study: Study, out: Path) -> None:
    start(study, out, "none", "yarn:4", "linear:2+ntk:1.7")
    names = [name for name in tree(out) if not name.startswith("nll/")]
    assert names == [".lock", "excerpts.safetensors", "nll", "results.csv", "results.json"]
    stored = [path.suffix for path in (out / "nll").iterdir()]
    assert stored == [".safetensors"] * 6  # a pass of 8 and one of 48 tokens for each


def test_results_hold_every_number_and_how_it_came_about(study: Study, out: Path) -> None:
    texts = ["none", "yarn:4", "dynamic"]
    study = dataclasses.replace(study, command="ropex eval tiny")
    start(study, out, *texts)
    content = strict_json((out / "results.json").read_text(encoding="utf-8"))
    assert [(row["strategy"], row["definition"], row["length"]) for row in content["results"]] == [
        (text, name, length) for text in texts for name in USUAL for length in (8, 48)
    ]
    for row in content["results"]:
        assert row["perplexity"] == math.exp(row["nll"])
        assert row["tokens"] == 3 * (row["length"] - 1 if row["definition"] == "prefix" else 4)
        assert row["low"] < row["perplexity"] < row["high"]
    about = content["about"]
    assert about["model"]["trained_length"] == TRAINED
    assert (about["model"]["dtype"], about["model"]["device"]) == ("float32", "cpu")
    assert about["model"]["sha256"] == study.fingerprint
    assert about["data"]["documents"] == ["a.txt", "b.txt"]
    assert (about["data"]["excerpts"], about["data"]["tokens"]) == (3, 48)
    assert (about["data"]["bos"], about["data"]["tokens_sha256"]) == (0, study.corpus.sha256)
    assert about["data"]["clusters"] == "documents"
    assert about["protocol"]["lengths"] == [8, 48]
    assert about["protocol"]["targets"] == 4
    assert about["command"] == "ropex eval tiny"
    assert set(about["versions"]) == {"transformers", "torch"}
    known = content["strategies"]
    assert list(known) == texts
    assert [known[text]["length_class"] for text in texts] == ["static", "static", "per_length"]
    assert len({known[text]["inv_freq_sha256"] for text in texts}) == 3
    assert known["yarn:4"]["attention_scale"] == 0.1 * math.log(4) + 1
    assert known["none"]["wavelengths"] == pytest.approx(
        [2 * math.pi * 10_000 ** (2 * pair / 8) for pair in range(4)]
    )
    assert {row["strategy"] for row in content["curve"]} == set(texts)
    assert [row["length"] for row in content["winners"]] == [8, 48]
    assert [row["strategy"] for row in content["verdicts"]] == texts


def test_csv_holds_the_numbers_of_the_json(study: Study, out: Path) -> None:
    results = start(study, out, "none", "yarn:4")
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_text(encoding="utf-8"))))
    assert len(rows) == len(results.results)
    for row, result in zip(rows, results.results, strict=True):
        told = {name: str(value) for name, value in dataclasses.asdict(result).items()}
        assert row == {**told, "hurt": row["hurt"]}
    read = Results.load(out)
    assert strict_json(json.dumps(results.about)) == read.about
    assert dataclasses.replace(read, about=results.about) == results


@pytest.mark.parametrize(("nll", "perplexity"), [(1e4, math.inf), (math.nan, math.nan)])
def test_numbers_that_json_does_not_have_are_kept_in_json(
    tmp_path: Path, nll: float, perplexity: float
) -> None:
    about: dict[str, Any] = {"model": {}, "data": {"tokens": 8}, "versions": {}}
    row = Result("none", "local", 8, nll, perplexity, None, None, -math.inf, 4)
    Results(about, Protocol.of((8,)), {"none": {}}, (row,)).save(tmp_path)
    strict_json((tmp_path / "results.json").read_text(encoding="utf-8"))
    (read,) = Results.load(tmp_path).results
    assert (read.nll, read.perplexity) == pytest.approx((nll, perplexity), nan_ok=True)
    assert (read.se, read.low, read.high) == (None, None, -math.inf)


def test_strategies_swapped_on_one_model_leave_it_bit_identical(
    study: Study, causal: Any, out: Path
) -> None:
    def bits() -> dict[str, torch.Tensor]:
        named = [*causal.named_parameters(), *causal.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in named}

    before, config = bits(), copy.deepcopy(causal.config.to_dict())
    ids = torch.cat([torch.tensor([0]), study.corpus.excerpts[0].ids])
    plain = plain_nll(causal, ids)
    start(study, out, *STATIC, *BY_LENGTH)
    after = bits()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert causal.config.to_dict() == config
    assert torch.equal(plain_nll(causal, ids), plain)


def test_bar_ends_exactly_full(study: Study, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

        def set_description_str(self, text: str, refresh: bool) -> None:
            pass

    monkeypatch.setattr("ropex_eval.running.progress.tqdm", Bar)
    start(study, out, "none", "linear:4")
    start(study, out, "none", "linear:4", "yarn:4")
    assert all(bar.done == bar.total > 0 for bar in bars)
    assert bars[1].total < bars[0].total  # only what is left counts


def test_fingerprint_follows_config_and_weights_alone(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "tiny")
    seen = [checkpoint_fingerprint(checkpoint)]
    (checkpoint / "notes.txt").write_text("mine", encoding="utf-8")
    (checkpoint / "tokenizer.json").unlink()
    assert checkpoint_fingerprint(checkpoint) == seen[0]
    weights, config = checkpoint / "model.safetensors", checkpoint / "config.json"
    turned = dict(reversed(json.loads(config.read_text(encoding="utf-8")).items()))
    config.write_text(json.dumps(turned), encoding="utf-8")
    assert checkpoint_fingerprint(checkpoint) == seen[0]
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    seen.append(checkpoint_fingerprint(checkpoint))
    config.write_text(config.read_text(encoding="utf-8").replace("32", "64"), encoding="utf-8")
    seen.append(checkpoint_fingerprint(checkpoint))
    weights.rename(checkpoint / "model-2.safetensors")
    seen.append(checkpoint_fingerprint(checkpoint))
    assert len(set(seen)) == 4


# What a stored number depends on.


def keys_of(study: Study, text: str) -> list[str]:
    return [key for _, _, key in study.keys(ropex.strategy(text)).ranges]


def test_strategies_that_differ_in_anything_have_keys_of_their_own(study: Study) -> None:
    texts = (
        "none", "linear:4", "yarn:4", "yarn:factor=4,attention_factor=1.25", "temperature:1.07",
        "theta:500000", "theta:500001",
    )  # fmt: skip
    keys = [key for text in texts for key in keys_of(study, text)]
    assert len(set(keys)) == len(keys) == len(texts)
    within, beyond = keys_of(study, "dynamic")
    assert within == keys[0]  # where it does nothing
    assert beyond not in keys
    assert keys_of(study, "logn")[-1] not in keys


def test_keys_name_what_decides_a_number_and_nothing_else(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (key,) = keys_of(study, "yarn:length=128")
    alike = dataclasses.replace(study, model_id="other", command="other", trained_length=TRAINED)
    assert keys_of(alike, "yarn:length=128") == [key]
    windowed = tiny_causal("mistral", sliding_window=16)
    others = [
        dataclasses.replace(study, dtype="bfloat16"),
        dataclasses.replace(study, device="cuda"),
        dataclasses.replace(study, folder=save_checkpoint(tmp_path / "other", seed=1)),
        dataclasses.replace(study, trained_length=16),  # which yarn goes by
        dataclasses.replace(study, skeleton=windowed, lift_sliding_window=True),
    ]
    keys = {keys_of(other, "yarn:length=128")[0] for other in others}
    monkeypatch.setattr("ropex_eval.study.study.versions", lambda: {"torch": "9.9"})
    keys |= set(keys_of(dataclasses.replace(study), "yarn:length=128"))
    assert len(keys - {key}) == len(others) + 1


def test_numbers_do_not_depend_on_what_was_measured_before(study: Study, out: Path) -> None:
    texts = ("dynamic", "yarn:4", "logn", "none")
    there = start(study, out, *texts)
    back = start(study, out.parent / "back", *reversed(texts))
    for row in there.results:
        other = back.of(row.definition)[row.strategy][row.length]
        assert row.nll == pytest.approx(other.nll, abs=LOSS)
