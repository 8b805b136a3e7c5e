"""What each engine computes of an export, by formulas written from its documents, is the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ropex
from ropex.engines import Export, exports
from ropex.engines.judge import answer
from ropex.engines.wanted import Wanted, read
from tests.support.cases import BY_LENGTH_IN_CONFIG, STATIC
from tests.support.engine_formulas import (
    BASE,
    PAIRS,
    Config,
    Table,
    exllamav2,
    exllamav3,
    flags_of,
    llama_cpp,
    mlx,
    root,
    sglang,
    tensorrt,
    vllm,
)
from tests.support.models import TRAINED, rope_settings, tiny_model

TOLERANCE = 2e-6
DYNAMIC = "dynamic:4"
TWO_LISTS = BY_LENGTH_IN_CONFIG[-1]

READERS = {
    "vllm": vllm,
    "sglang": sglang,
    "tensorrt-llm": tensorrt,
    "mlx": mlx,
    "exllama": exllamav3,
}
OVERRIDES = {"vllm": "--hf-overrides", "sglang": "--json-model-override-args"}


def computed(found: Export, raw: Config, tokens: int, length: int) -> Table:
    """What the engine computes of a text of `tokens` tokens."""
    if found.engine == "llama.cpp":
        return llama_cpp(found)
    config = {**raw, **(found.config or {})}
    if found.engine in OVERRIDES:  # which replace the checkpoint's entry whole
        config = raw | json.loads(flags_of(found).get(OVERRIDES[found.engine], "{}"))
    return READERS[found.engine](config, tokens, length)


def off(found: Table, planned: Table) -> float:
    """Largest relative error; of pairs that stand still, what is left of them."""
    pairs = zip(found[0], planned[0], strict=True)
    return max(abs(found[1] / planned[1] - 1), *(abs(a - b) / (b or 1) for a, b in pairs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model"
    tiny_model("llama").save_pretrained(path)
    return path


def raw_config(folder: Path) -> Config:
    content: Config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return rope_settings() | {"rope_scaling": None} | content


def planned(text: str, tokens: int) -> Table:
    rope = ropex.rope.Rope.standard(2 * PAIRS, BASE, TRAINED)
    plan = ropex.strategy(text).plan(rope, tokens)
    return plan.inv_freq.tolist(), float(plan.attention_scale)


def answers(wanted: Wanted) -> list[Export]:
    return [each for each in exports(wanted) if not each.engine.startswith("transformers")]


@pytest.mark.parametrize(
    "text",
    [
        *STATIC, "yarn:1.7", "yarn:factor=1.7,attention_factor=1", "llama3:16,beta=1",
        "yarn:factor=4,beta_fast=2,beta_slow=0.05", "yarn:factor=4,beta_slow=0.05",
        "yarn:factor=4,beta_slow=0.05,attention_factor=1.3",
        "yarn:factor=4,beta_fast=0.9,beta_slow=0.4",
    ],
)  # fmt: skip
def test_every_engine_computes_a_static_strategy(folder: Path, text: str) -> None:
    wanted, raw = read(folder, text), raw_config(folder)
    length = wanted.target_length
    for found in answers(wanted):
        assert found.exactness != "not expressible", found
        assert found.bound is not None
        error = off(computed(found, raw, length, length), planned(text, TRAINED))
        if found.exactness == "exact":
            assert error < TOLERANCE, found.engine
        else:
            assert error == pytest.approx(found.bound, rel=1e-6), found.engine
            assert TOLERANCE < error < 0.01


@pytest.mark.parametrize("text", [DYNAMIC, TWO_LISTS])
def test_what_depends_on_the_length_is_held_within_the_bound(folder: Path, text: str) -> None:
    wanted, raw = read(folder, text), raw_config(folder)
    length = wanted.target_length
    assert length == 4 * TRAINED
    for found in answers(wanted):
        assert found.bound is not None
        errors = [
            off(computed(found, raw, tokens, length), planned(text, tokens))
            for tokens in (TRAINED, TRAINED + 1, 2 * TRAINED, length)
        ]
        if found.exactness == "exact":
            assert max(errors) < TOLERANCE, found.engine
        else:
            assert max(errors) == pytest.approx(found.bound, rel=1e-6), found.engine
            assert errors[-1] < 0.01, found.engine
    exact = {found.engine for found in answers(wanted) if found.exactness == "exact"}
    assert exact == ({"sglang"} if text == TWO_LISTS else set())


@pytest.mark.parametrize("text", [t for t in STATIC if "yarn" not in t])
def test_exllamav2_computes_what_the_reason_says_that_it_does(folder: Path, text: str) -> None:
    wanted, raw = read(folder, text), raw_config(folder)
    found = answer("exllama", wanted)
    if not found.reason.startswith("exllamav2 and exllamav3") and "so does" not in found.reason:
        assert "exllamav2" in found.reason
        return
    assert found.bound is not None
    table = exllamav2({**raw, **(found.config or {})}, 0, wanted.target_length)
    assert off(table, planned(text, TRAINED)) <= found.bound * 1.001 + TOLERANCE


def test_the_two_lengths_give_the_temperature_that_was_measured() -> None:
    original = round(131072 ** (1 / 1.1386294**2))
    entry = {"original_max_position_embeddings": original}
    assert root(entry, 131072) == pytest.approx(1.1386302, abs=1e-7)
