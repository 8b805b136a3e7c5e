"""`ropex show`: strategies side by side, in text, in numbers and in a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ropex
from ropex.advice import pictures
from ropex.advice.comparison import Comparison, Effect
from ropex.cli.show import _stretch
from ropex.sizes import format_size
from tests.support.models import tiny_causal
from tests.support.shell import Shell
from tests.support.tiny_eval import strict_json, tree

EIGHT = ("yarn:4", "linear:4", "ntk:8", "dynamic", "clip:2", "llama3:4", "proportional", "logn")


@pytest.fixture
def show(world: Shell) -> Any:
    def run(*strategies: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        given = [part for text in strategies for part in ("-s", text)]
        return world("show", "tiny", *given, *options)

    return run


def numbers(show: Any, *strategies: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    status, out, err = show(*strategies, options=("--json", *options))
    assert (status, err) == (0, "")
    read: dict[str, Any] = strict_json(out)
    return read


def test_table_has_a_row_for_each_pair_and_marks_the_critical_one(show: Any) -> None:
    status, out, err = show("linear:4", "yarn:4")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "tiny: llama, trained at 32 tokens, rope_theta 10000, 8 rotated dimensions"
    assert lines[2].split() == ["pair", "wavelength", "turns", "linear:4", "yarn:4"]
    assert lines[3].split() == ["0", "6.3", "5.09", "x", "4", "x", "1", "<-", "critical"]
    assert lines[4].split()[:5] == ["1", "62.8", "0.51", "x", "4"]
    assert sum("critical" in line for line in lines[2:7]) == 1
    assert "Pair 0 is the critical one" in lines[-1]
    assert "(critical dimension 2 of 8)" in lines[-1]


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("linear:4", "linear:4 at 128 tokens: 0 pairs kept, 0 between, 4 at x 4"),
        ("clip:2", "clip:2 at 32 tokens: 3 pairs kept, 0 between, 1 stopped"),
        ("proportional", "proportional at 32 tokens: 1 pair kept, 0 between, 3 stopped"),
        ("clip:pairs=4,hard=true", "at 32 tokens: 0 pairs kept, 0 between, 4 stopped"),
        ("temperature:1.5", "4 pairs kept, 0 between; cos and sin x 1.5000"),
        ("logn", "queries x ln(position + 1) / ln(32); cannot be saved in a config"),
        ("ntk:4", "1 pair kept, 2 between, 1 at x 4; 2 pairs beyond the trained angles"),
        ("resonance", "resonance at 32 tokens: 0 pairs kept"),
    ],
)
def test_summary_tells_what_becomes_of_the_pairs(show: Any, text: str, summary: str) -> None:
    status, out, _ = show(text)
    assert status == 0
    assert summary in out
    assert not {"inf", "nan", "-inf", "None"} & set(out.replace(",", " ").split())


def test_pair_that_stops_is_told_so(show: Any) -> None:
    rows = show("proportional")[1].splitlines()[3:7]
    assert [row.split()[3:5] for row in rows] == [["x", "1"], ["stops"], ["stops"], ["stops"]]


@pytest.mark.parametrize(
    ("value", "wave", "text"),
    [(4.0, 6.3, "x 4"), (1.234567, 6.3, "x 1.23"), (1e30, 6.3, "x 1e30"), (5e3, 6.3, "x 5e3"),
     (None, 6.3, "stops"), (None, None, "-")],
)  # fmt: skip
def test_stretch_is_readable(value: float | None, wave: float | None, text: str) -> None:
    assert _stretch(value, wave) == text


@pytest.mark.parametrize(
    ("text", "options", "length"),
    [
        ("dynamic", (), 128),  # four times the trained length
        ("dynamic:2", (), 64),  # its target
        ("dynamic", ("--length", "1k"), 1024),
        ("dynamic_yarn", ("--length", "96"), 96),
        ("dynamic:length=64", ("--length", "1k"), 64),  # the same at every length
        ("yarn:8", ("--length", "1k"), 256),
        ("none", (), 32),
    ],
)
def test_strategy_is_shown_at_its_length(
    show: Any, text: str, options: tuple[str, ...], length: int
) -> None:
    (shown,) = numbers(show, text, options=options)["strategies"]
    assert shown["at_length"] == length
    wanted = ropex.Rope.standard(8, 1e4, 32)
    plan = ropex.strategy(text).plan(wanted, length)
    assert shown["stretch"] == pytest.approx((wanted.inv_freq / plan.inv_freq).tolist(), rel=1e-6)
    assert f"{text} at {format_size(length)} tokens" in show(text, options=options)[1]


def test_length_that_was_chosen_for_the_user_is_told(show: Any) -> None:
    assert "Shown at one length of many: dynamic" in show("dynamic", "yarn:4")[1]
    assert "one length of many" not in show("yarn:4")[1]


def test_numbers_are_for_programs(show: Any) -> None:
    read = numbers(show, "linear:4", "clip:2", "logn", "yarn:4")
    assert (read["trained_length"], read["rope_theta"], read["rotary_dim"]) == (32, 1e4, 8)
    assert (read["critical_pair"], read["critical_dimension"]) == (0, 2)
    assert read["wavelengths"] == pytest.approx([2 * math.pi * 10**n for n in range(4)], rel=1e-6)
    assert read["turns"][0] == pytest.approx(32 / (2 * math.pi))
    linear, clip, logn, yarn = read["strategies"]
    assert linear["stretch"] == pytest.approx([4.0] * 4, rel=1e-6)
    assert (linear["target_length"], linear["saved"], linear["inside"]) == (128, True, [True] * 4)
    assert clip["stretch"] == [1, 1, 1, None]
    assert (clip["wavelengths"][3], clip["stopped"]) == (None, 1)
    assert (logn["saved"], logn["query_scale"]) == (False, "ln(position + 1) / ln(32)")
    assert yarn["attention_scale"] == pytest.approx(1.1386294)


def test_rope_whose_pairs_never_turn_has_no_critical_pair(show: Any) -> None:
    out = show("linear:4", options=("--trained-length", "4"))[1]
    assert "No pair makes a full turn within 4 tokens." in out
    assert "critical" not in out


def test_it_needs_no_weights_and_no_strategy(show: Any) -> None:
    Path("tiny/model.safetensors").unlink()
    status, out, _ = show(options=("--trained-length", "1k"))
    assert status == 0
    assert "trained at 1k tokens" in out


@pytest.mark.parametrize("strategies", [(), ("yarn:4",), EIGHT])
def test_picture_is_written_and_has_room_for_everything(
    show: Any, strategies: tuple[str, ...]
) -> None:
    status, out, _ = show(*strategies, options=("--png", "ropes.png"))
    assert status == 0
    assert out.startswith("tiny: llama")  # the table as well
    with Image.open("ropes.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
    assert [path.name for path in Path().glob("*.png")] == ["ropes.png"]


def test_picture_has_a_line_for_each_strategy_and_every_mark() -> None:
    rope, model = ropex.Rope.standard(8, 1e4, 32), tiny_causal()
    effects = []
    for text in EIGHT:
        with ropex.patch(model, text) as patched:
            effects.append(Effect.of(patched))
    figure = pictures._comparison(Comparison.of("tiny", "llama", rope, effects))
    upper, lower = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "as trained", "yarn:4 at 128", "linear:4 at 128", "ntk:8 at 256", "dynamic at 128",
        "clip:2 at 32", "llama3:4 at 128", "proportional at 32", "logn at 32",
    ]  # fmt: skip
    notes = {text.get_text() for text in upper.texts}
    assert notes == {
        "trained 32", "target 128", "target 256", "critical pair 0 (dimension 2 of 8)",
    }  # fmt: skip
    levels = [line.get_ydata()[0] for line in upper.get_lines() if len(line.get_ydata()) == 2]
    assert {32, 128, 256} <= set(levels)
    assert any(list(line.get_xdata()) == [0, 0] for line in lower.get_lines())  # the critical pair
    stopped = [
        line for line in lower.get_lines() if line.get_marker() == "x" and len(line.get_xdata())
    ]
    assert [list(line.get_xdata()) for line in stopped] == [[3], [1, 2, 3]]
    linear = lower.get_lines()[1]
    assert list(linear.get_ydata()) == pytest.approx([4.0] * 4, rel=1e-6)
    styles = {(line.get_color(), line.get_linestyle()) for line in lower.get_lines()[:8]}
    assert len(styles) == 8


@pytest.mark.parametrize("name", ["ropes.pdf", "ropes", "nowhere/ropes.png", "there.png"])
def test_picture_that_cannot_be_written_is_refused_before_any_work(show: Any, name: str) -> None:
    Path("there.png").write_bytes(b"mine")
    before = tree(Path())
    status, out, err = show("yarn:4", options=("--png", name))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert name in err
    assert tree(Path()) == before


def test_picture_is_replaced_by_force(show: Any) -> None:
    Path("ropes.png").write_bytes(b"old")
    assert show("yarn:4", options=("--png", "ropes.png", "--force"))[0] == 0
    assert Path("ropes.png").read_bytes() != b"old"
