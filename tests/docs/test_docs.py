"""The page on all strategies says what they are, and is current."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ropex.advice import pictures
from ropex.doctor import RULES, Rule
from ropex.engines import exports
from ropex.engines.wanted import read
from ropex.rope import Rope
from ropex.strategies.base import parameters
from ropex.strategies.registry import list_strategies, registry
from ropex_eval.scores.definitions import DEFINITIONS
from ropex_eval.tasks import TASKS
from tests.support.paths import ROOT
from tools import strategies_page as page

DOCS = ROOT / "docs"
PAGE = (DOCS / "strategies.md").read_text(encoding="utf-8")
NAMES = list_strategies()


def section(name: str) -> str:
    found = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_page_is_current() -> None:
    assert page.text() == PAGE, "run: python -m tools.strategies_page"


def test_every_picture_is_there_and_none_too_many() -> None:
    shown = set(re.findall(r"\]\((strategies/\w+\.png)\)", PAGE))
    there = {path.relative_to(DOCS).as_posix() for path in (DOCS / "strategies").iterdir()}
    assert shown == there
    assert sum((DOCS / path).stat().st_size for path in there) < 300_000


def test_contents_lead_to_every_section() -> None:
    anchors = [line.lstrip("# ").lower().replace(" ", "-") for line in PAGE.splitlines()
               if line.startswith("##")]  # fmt: skip
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) == set(anchors)
    assert set(NAMES) <= set(anchors)


@pytest.mark.parametrize("name", NAMES)
def test_section_has_everything(name: str) -> None:
    cls, text = registry()[name], section(name)
    assert cls.paper in text
    for mark in ("Formula", "When", "Here", "Key-value cache", "Attention kernels", "Saved config",
                 "Engines"):  # fmt: skip
        assert re.search(rf"^- {mark}: \S.*\.$|^- Source: ", text, re.MULTILINE), mark
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert rows == [each.name for each in parameters(cls)]
    assert "None" not in text
    assert "Args:" not in text


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_what_each_parameter_is_and_no_other(name: str) -> None:
    cls = registry()[name]
    said = page.meanings(cls)
    assert all(said[each.name] for each in parameters(cls))
    assert page._formula(cls).endswith(".")
    if "Args:" in (cls.__doc__ or ""):
        assert said.keys() == {each.name for each in parameters(cls)}


def test_parameters_are_those_of_the_strategy_that_it_derives_from() -> None:
    assert page.meanings(registry()["yarn_log"]) == page.meanings(registry()["yarn"])
    assert "`log`" in section("yarn_log").partition("| `blend`")[2].splitlines()[0]
    assert page.meanings(registry()["llama3"])["beta"].endswith("(`high_freq_factor`).")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("yarn", "- Saved config: the `yarn` type."),
        ("ntk", "- Saved config: `rope_theta` 40889.94243."),
        ("yarn_pose", "- Saved config: a `longrope` list with its temperature."),
        ("logn", "- Saved config: nothing, as no config can say it."),
        ("yarn", "- Key-value cache: valid at any length."),
        ("dynamic_linear", 'patch with `cache="unrotated"`, or fix `length=N`.'),
        ("logn", "as queries are scaled before them"),
        ("dynamic", "only cos and sin change; eager or sdpa with an un-rotated cache"),
        ("linear", "changes by up to 48 radians."),
        ("ntk", "17 of 64 pairs see new angles at 16k"),
        ("yarn", "also without further training (arXiv:2309.00071, section 3.4)"),
        ("linear", "published results are of models that continued training with it"),
    ],
)
def test_what_is_said_is_derived_from_the_class(name: str, line: str) -> None:
    assert line in section(name)


def test_the_page_says_of_engines_what_export_answers(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 8, "vocab_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 4096,
        "rope_theta": 1e4, "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in NAMES:
        wanted = read(tmp_path, str(page.example(registry()[name])))
        groups = re.findall(
            r"([\w.-]+(?:, [\w.-]+)*): (yes|export|near|no)\b",
            section(name).partition("- Engines: ")[2].splitlines()[0],
        )
        said = {engine: verdict for names, verdict in groups for engine in names.split(", ")}
        assert said == {each.engine: each.verdict for each in exports(wanted.patched)}, name


def test_the_tool_writes_the_page_and_its_pictures(tmp_path: Path) -> None:
    written = page.write_page(tmp_path / "new")
    names = [path.name for path in sorted((DOCS / "strategies").iterdir())]
    assert sorted(path.name for path in written[1:]) == names


@pytest.mark.parametrize(
    ("name", "label", "last"),
    [("yarn", "stretch", 4.0), ("logn", "logits x", 1.25), ("temperature", "logits x", 1.1449)],
)
def test_picture_shows_what_the_strategy_changes(
    name: str, label: str, last: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(pictures, "_save_small", lambda figure, path: drawn.append(figure))
    rope = Rope.standard(128, 1e4, 4096)
    assert pictures.draw(page.example(registry()[name]), rope, tmp_path / "x.png")
    (axis,) = drawn[0].axes
    assert axis.get_ylabel() == label
    assert axis.get_lines()[0].get_ydata()[-1] == pytest.approx(last, rel=1e-3)


def test_nothing_is_drawn_of_what_changes_nothing(tmp_path: Path) -> None:
    rope = Rope.standard(128, 1e4, 4096)
    assert not pictures.draw(page.example(registry()["none"]), rope, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*DEFINITIONS, *TASKS])
def test_every_definition_and_task_is_explained(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "evaluation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_of_the_doctor_is_listed(rule: Rule) -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    wanted = " ".join((rule.check.__doc__ or "").strip().split("\n\n")[0].split()).rstrip(".")
    assert f"| `{rule.name}` | {rule.severity} | {wanted} |" in page
