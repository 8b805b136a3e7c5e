"""Closed-form advice: candidates, engines, and how they are told."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import ropex
from ropex.advice import bounds
from ropex.advice.candidates import UNTRAINED, Candidate, candidates
from ropex.cli import main
from ropex.engines import ENGINES, exports
from ropex.engines.plain import wanted_in_llama
from ropex.engines.wanted import read
from ropex.rope import Rope
from ropex.strategies.registry import registry
from tests.support.models import save_checkpoint, tiny_causal
from tests.support.paths import REAL
from tests.support.tiny_eval import strict_json, words

LLAMA_2 = Rope.standard(128, 1e4, 4096)


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_checkpoint(tmp_path / "tiny")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    return (main(["suggest", *arguments]), *capsys.readouterr())


# Candidates.


def advised(rope: Rope, length: int) -> tuple[list[Candidate], dict[str, str]]:
    return candidates(rope, length, lambda strategy: wanted_in_llama(rope, strategy))


def test_candidates_are_every_strategy_that_scales() -> None:
    found, left_out = advised(LLAMA_2, 32768)
    names = {each.strategy.name for each in found}
    assert {"linear", "ntk", "yarn", "llama3", "dynamic", "dynamic_yarn", "mrrope"} <= names
    assert not {"logn", "theta", "none", "clip", "drope"} & names
    assert set(left_out) == {"longrope"}
    assert [each.rank for each in found] == sorted(each.rank for each in found)


def test_factor_of_a_candidate_is_the_smallest_that_suffices() -> None:
    found = {each.strategy.name: each for each in advised(LLAMA_2, 32768)[0]}
    # Pair 46 of 64 is the first that did not turn: factor ** (2 * 46 / 126) = 8 gives 17.25.
    assert found["ntk"].strategy == ropex.strategy("ntk:17.43")
    assert not bounds.inside(LLAMA_2, ropex.strategy("ntk:17.2").plan(LLAMA_2), 32768).all()
    assert str(found["yarn"].strategy) == "yarn:8"
    assert all(each.outside == 0 for name, each in found.items() if name != "dynamic_qwen")


def test_factor_that_would_be_absurd_is_not_proposed() -> None:
    rope = Rope.standard(64, 1e4, 256)  # ntk would need 735 to reach 16 times as far
    found = {each.strategy.name: each for each in advised(rope, 4096)[0]}
    assert str(found["ntk"].strategy) == "ntk:16"
    assert found["ntk"].outside > 0


def test_length_that_is_no_round_multiple_is_named() -> None:
    found = {each.strategy.name: each for each in advised(LLAMA_2, 10000)[0]}
    assert str(found["yarn"].strategy) == "yarn:length=10000"


def test_strategies_by_length_cost_nothing_within_the_trained_length() -> None:
    for each in advised(LLAMA_2, 32768)[0]:
        free = each.strategy.length_class == "per_length"
        assert (each.phase == 0) == free
        assert each.logits == pytest.approx(1) or not free


def test_strategy_that_does_not_fit_is_named_with_the_reason() -> None:
    found, left_out = advised(Rope.standard(2, 1e4, 64), 256)
    assert "at least two rotated pairs" in left_out["ntk"]
    assert "linear" in {each.strategy.name for each in found}


def test_published_results_are_of_known_strategies() -> None:
    assert UNTRAINED.keys() <= registry().keys()


# The command.


def test_suggestion_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = told(capsys, "tiny", "--length", "128", "--json")
    assert (status, err) == (0, "")
    said = strict_json(out)
    assert (said["trained_length"], said["length"], said["smallest_factor"]) == (32, 128, 4)
    assert (said["critical_dimension"], said["rotary_dim"], said["outside_unscaled"]) == (2, 8, 3)
    assert said["base_bound"] == pytest.approx(bounds.base_bound(8, 128))
    by_name = {each["strategy"].split(":")[0]: each for each in said["candidates"]}
    for name in ("yarn", "mrrope", "linear", "dynamic_yarn"):  # as `ropex export` has it
        found = exports(read(folder, by_name[name]["strategy"]).patched)
        assert by_name[name]["engines"] == {each.engine: each.verdict for each in found}
        assert by_name[name]["notes"] == {each.engine: each.reason for each in found}
    assert by_name["mrrope"]["engines"]["llama.cpp"] == "export"
    assert all(each["paper"] for each in said["candidates"])
    assert list(said["engine_sources"]) == list(ENGINES)
    assert said["left_out"].keys() == {"longrope"}


def test_suggestion_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = told(capsys, "tiny", "--length", "128")
    assert (status, err) == (0, "")
    assert "critical dimension: 2 of 8. 1 of 4 pairs made a full turn" in out
    assert "smallest factor: 4." in out
    for source in ("arXiv:2310.05209", "arXiv:2306.15595", "arXiv:2405.14591", "SGLang 0.5.23"):
        assert source in out
    header = next(line for line in out.splitlines() if line.startswith("strategy "))
    assert header.split() == ["strategy", "inside", "untrained", "phase", "logits", "engines"]
    assert out.splitlines()[-1].startswith("  ropex patch tiny -s ")
    assert max(map(len, out.splitlines()[:-2])) <= 100
    assert not {"inf", "nan", "None"} & set(out.replace(",", " ").split())


def test_commands_that_are_suggested_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("book.txt").write_text(words(400), encoding="utf-8")
    options = ("--length", "100", "--trained-length", "30")
    measure, keep = strict_json(told(capsys, "tiny", *options, "--json")[1])["next"]
    small = ["--excerpts", "2", "--data", "book.txt"]
    assert "--lengths 30,60,100" in measure
    assert main([*shlex.split(measure)[1:], *small]) == 0
    assert main(shlex.split(keep)[1:]) == 0
    assert json.loads(Path("tiny-100/config.json").read_text())["max_position_embeddings"] >= 100


def test_window_and_own_scaling_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_causal("mistral", sliding_window=16).save_pretrained(tmp_path / "windowed")
    out = told(capsys, str(tmp_path / "windowed"), "--length", "128")[1]
    assert "sliding window: attention sees the last 16 tokens only" in out
    assert "--lift-sliding-window" in out
    assert main(["patch", str(tmp_path / "windowed"), "-s", "linear:2", "--lift-sliding-window",
                 "-o", str(tmp_path / "scaled")]) == 0  # fmt: skip
    out = told(capsys, str(tmp_path / "scaled"), "--length", "128")[1]
    assert "scaled already (linear, factor 2)" in out


def test_no_scaling_is_suggested_where_what_rotates_sees_no_new_distance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    types = ["sliding_attention", "full_attention"]
    model = tiny_causal("cohere2", sliding_window=16, layer_types=types)
    model.save_pretrained(tmp_path / "near")
    out = " ".join(told(capsys, str(tmp_path / "near"), "--length", "128")[1].split())
    assert "no scaling is needed: every layer that rotates sees only the last 16 tokens" in out
    assert "What limits the model are its layers without rotation" in out
    assert "yarn" not in out
    told_json = told(capsys, str(tmp_path / "near"), "--length", "128", "--json")[1]
    about = json.loads(told_json)
    assert (about["rotates_within"], about["candidates"]) == (16, [])
    assert [command.split()[1] for command in about["next"]] == ["eval"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--length", "32"), "32 tokens are within the 32 that the model was trained at"),
        (("--length", "8"), "there is nothing to do"),
    ],
)
def test_mistake_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = told(capsys, "tiny", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("arguments", [(), ("--length", "long")])
def test_length_is_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["suggest", "tiny", *arguments])
    assert left.value.code == 2
    assert "--length" in capsys.readouterr().err


def test_length_beyond_every_factor_leaves_out_what_cannot_reach_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = told(capsys, "tiny", "--length", "1024M", "--json")
    said = strict_json(out)
    assert status == 0
    assert "from 1 to 1048576" in said["left_out"]["linear"]
    assert said["base_bound"] is None


@pytest.mark.parametrize(("name", "trained"), [("stories260K", 512), ("babyllama105", 256)])
def test_real_checkpoints_are_advised(
    name: str, trained: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"no real checkpoint at {REAL / name}")
    said = strict_json(told(capsys, str(REAL / name), "--length", str(4 * trained), "--json")[1])
    first = [each["strategy"] for each in said["candidates"][:2]]
    assert first == ["mrrope:4", "yarn:4"]  # measured: both hold at this length
    assert "-s yarn:4" in said["next"][1]


def test_demo_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    assert "to read 4k" in told(capsys, "demo", "--length", "4k")[1]
