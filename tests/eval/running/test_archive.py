"""Numbers of runs that are finished: read again, and other ones worked out without a model."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ropex_eval.report.terminal import format_perplexity
from ropex_eval.running.archive import Archive
from ropex_eval.scores.protocol import Protocol
from ropex_eval.scores.results import Results
from ropex_eval.study.study import Study
from ropex_eval.study.table import NotMeasured
from tests.support.models import save_checkpoint
from tests.support.rounding import LOSS
from tests.support.shell import Shell
from tests.support.tiny_eval import start, strict_json, study_of, tree

STRATEGIES = ("none", "yarn:4", "dynamic")
NAMES = ("local", "fixed", "prefix", "sliding", "longppl")
MEASURED = Protocol.of((24, 48), 4, NAMES, 4, 96, 4)


@dataclasses.dataclass(frozen=True)
class Place:
    """A checkpoint, a run of it, and what makes others."""

    folder: Path
    study: Study

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def fresh(self, out: Path, protocol: Protocol, *strategies: str) -> Results:
        study = dataclasses.replace(self.study, protocol=protocol)
        return start(study, out, *(strategies or STRATEGIES))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, causal: Any) -> Place:
    folder = tmp_path_factory.mktemp("archive")
    checkpoint = save_checkpoint(folder / "tiny")
    found = Place(folder, study_of(folder, checkpoint, causal, MEASURED, excerpts=4))
    found.fresh(found.run, MEASURED)
    return found


@pytest.fixture
def copy(place: Place, tmp_path: Path) -> Path:
    """The run, to be damaged."""
    return Path(shutil.copytree(place.run, tmp_path / "copy"))


def flat(content: Any, name: str = "", rounded: bool = False) -> dict[str, Any]:
    """Every value of nested content, by its place."""
    if isinstance(content, (dict, list)):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return {k: v for n, each in items for k, v in flat(each, f"{name}/{n}", rounded).items()}
    inexact = rounded and isinstance(content, float)
    return {name: pytest.approx(content, rel=1e-4, abs=LOSS) if inexact else content}


def results_of(run: Path) -> str:
    return (run / "results.json").read_text(encoding="utf-8")


# Opened again.


def test_run_is_read_as_it_was_written(place: Place) -> None:
    run = Archive.open(place.run)
    assert run.protocol == MEASURED
    assert run.corpus.sha256 == place.study.corpus.sha256
    assert run.trained == 32
    assert tuple(run.tables) == STRATEGIES
    assert run.rescore().to_json() == run.results.to_json() == results_of(place.run)


OTHER_NUMBERS: dict[str, dict[str, Any]] = {
    "names": {"definitions": ("prefix", "mean_perplexity")},
    "shorter": {"lengths": (24,)},
    "fewer targets": {"targets": 3},
    "every window alike": {"definitions": ("sliding", "window_mean"), "lengths": (48,)},
    "another evaluator": {"definitions": ("longppl",), "evaluator": "yarn:4"},
}


@pytest.mark.parametrize("case", OTHER_NUMBERS)
def test_other_numbers_of_the_table_are_those_of_a_run_that_measures_them(
    place: Place, tmp_path: Path, case: str
) -> None:
    asked = OTHER_NUMBERS[case]
    rescored = Archive.open(place.run).rescore(**asked)
    recorded = {**dataclasses.asdict(MEASURED), **asked}
    fresh = place.fresh(tmp_path / "fresh", Protocol.of(**recorded))
    ours, theirs = (json.loads(each.to_json()) for each in (rescored, fresh))
    for part in ("results", "changes", "verdicts", "winners"):
        assert flat(ours[part]) == flat(theirs[part], rounded=True)
    assert ours["about"]["protocol"] == theirs["about"]["protocol"]
    assert ours["about"]["warnings"] == theirs["about"]["warnings"]
    assert rescored.results != Results.load(place.run).results


def test_prefixes_of_what_was_read_serve_lengths_that_were_not_asked_for(
    place: Place, tmp_path: Path
) -> None:
    texts, lengths, names = ("none", "linear:4"), (10, 40, 47), ("local", "prefix")
    place.fresh(tmp_path / "run", Protocol.of((8, 48)), *texts)
    rescored = Archive.open(tmp_path / "run").rescore(names, lengths, 5)
    fresh = place.fresh(tmp_path / "fresh", Protocol.of(lengths, 5, names, None, 48), *texts)
    pairs = zip(rescored.results, fresh.results, strict=True)
    assert all(a.nll == pytest.approx(b.nll, abs=LOSS) for a, b in pairs)


@pytest.mark.parametrize(
    "asked",
    [
        {"lengths": (16, 48)},  # fixed targets after other texts
        {"definitions": ("prefix",), "lengths": (40,)},  # dynamic has a plan of its own there
        {"definitions": ("disjoint",)},
        {"definitions": ("sliding",), "stride": 3},
        {"targets": 5, "definitions": ("fixed",), "lengths": (24, 30)},
    ],
)
def test_what_the_table_lacks_is_told_with_what_adds_it(
    place: Place, copy: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(NotMeasured) as caught:
        Archive.open(copy).rescore(**asked)
    message = str(caught.value)
    assert f"{copy} does not hold what that takes" in message
    assert re.search(r"\(.*(were not read from token|plan of its own at 40 tokens)", message)
    assert f"-o {copy} adds what is missing" in message
    assert "\n" not in message
    protocol = Protocol.of(**{**dataclasses.asdict(MEASURED), **asked})
    added = place.fresh(copy, protocol)
    rescored = Archive.open(copy).rescore(**asked)
    assert json.loads(rescored.to_json())["results"] == json.loads(added.to_json())["results"]


# Folders that cannot be read.


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def nothing_finished(folder: Path) -> None:
    run = Results.load(folder)
    Results(run.about, run.protocol).save(folder)


def changed(value: Any, seal: bool = False) -> Callable[[Path], None]:
    """Another value in the first row of the results, with the hash of the file or without."""

    def change(raw: bytes) -> bytes:
        content = json.loads(raw)
        content["results"][0]["nll"] = value
        if seal:
            del content["sha256"]
            text = json.dumps(content, sort_keys=True)
            content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        return json.dumps(content).encode()

    return rewrite(RESULTS, change)


RESULTS, TEXT = "results.json", "excerpts.safetensors"
NO_RESULTS = "results.json is not a run's results, or damaged"
CHANGED = "results.json is damaged, or was changed after ropex wrote it"
UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no run": (unlink(RESULTS), "holds no run of ropex eval"),
    "no text": (unlink(TEXT), "nothing is finished in"),
    "nothing finished": (nothing_finished, "nothing is finished in"),
    "cut text": (rewrite(TEXT, lambda raw: raw[:-7]), f"{TEXT} is damaged"),
    "other text": (rewrite(TEXT, lambda raw: raw[:-1] + b"\x01"), f"{TEXT} is damaged"),
    "cut results": (rewrite(RESULTS, lambda raw: raw[:-100]), NO_RESULTS),
    "changed number": (changed(1.0), CHANGED),
    "surrogate": (changed("\ud800"), CHANGED),
    "sealed text": (changed("x", seal=True), f"{NO_RESULTS} (nll is 'x')"),
    "sealed digits": (changed(10**400, seal=True), NO_RESULTS),
    "many digits": (
        rewrite(RESULTS, lambda raw: raw.replace(b'"schema": ', b'"schema": ' + b"1" * 5000)),
        NO_RESULTS,
    ),
    "deep": (rewrite(RESULTS, lambda raw: b'{"about":' * 10**5), NO_RESULTS),
}


@pytest.mark.parametrize("verb", ["report", "compare"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_folder_that_cannot_be_read_is_one_line(
    place: Place, copy: Path, shell: Shell, name: str, verb: str
) -> None:
    damage, message = UNREADABLE[name]
    damage(copy)
    runs = (place.run, "copy") if verb == "compare" else ("copy",)
    assert message in shell.refused(verb, *runs)


def test_damaged_table_is_told_where_it_is_needed_and_the_run_mends_it(
    place: Place, copy: Path, shell: Shell
) -> None:
    whole = tree(copy)
    for path in (copy / "nll").iterdir():
        path.write_bytes(path.read_bytes()[:-4] + b"wild")
    assert "does not hold what that takes" in shell.refused("report", "copy", "--lengths", "48")
    shell.done("report", "copy")  # the results themselves are whole
    place.fresh(copy, MEASURED)
    assert tree(copy).items() >= whole.items()


# The verbs.


def test_report_is_written_again_and_prints_the_tables(
    place: Place, copy: Path, shell: Shell
) -> None:
    before = tree(copy)
    told = shell.done("report", "copy")
    after = tree(copy)
    assert after.keys() - before.keys() == {"report.html", "ppl.png"}
    assert {name: after[name] for name in before} == before
    assert all(f"\n{text}" in told for text in STRATEGIES)


@pytest.mark.parametrize("other", [(), ("--definitions", ",".join(NAMES))])
def test_tables_are_printed_in_every_format(
    copy: Path, shell: Shell, other: tuple[str, ...]
) -> None:
    results = Results.load(copy)
    told = {
        form: shell.done("report", "copy", *other, "--format", form)
        for form in ("text", "markdown", "latex", "csv", "json")
    }
    assert told["json"] == results.to_json()
    rows = list(csv.DictReader(io.StringIO(told["csv"])))
    assert [(row["definition"], row["strategy"]) for row in rows] == [
        (name, text) for name in NAMES for text in STRATEGIES
    ]
    for row in rows:
        for length in (24, 48):
            found = results.of(row["definition"])[row["strategy"]][length]
            assert float(row[str(length)]) == pytest.approx(found.perplexity, nan_ok=True)
    perplexity = re.escape(format_perplexity(results.of("prefix")["yarn:4"][48].perplexity))
    assert re.search(rf"\| yarn:4 +\|.*{perplexity}", told["markdown"])
    assert told["latex"].count(r"\begin{tabular}{lrr}") == len(NAMES)
    assert re.search(rf"\n *yarn:4 .*{perplexity}", told["text"])


def test_report_of_other_numbers_prints_what_was_asked_for_and_writes_nothing(
    place: Place, copy: Path, shell: Shell
) -> None:
    before = tree(copy)
    asked = ("--definitions", "sliding,prefix", "--lengths", 48)
    printed = strict_json(shell.done("report", "copy", *asked, "--format", "json"))
    wanted = Archive.open(place.run).rescore(("sliding", "prefix"), (48,))
    assert printed == strict_json(wanted.to_json())
    assert tree(copy) == before


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--lengths", "8,48"), "does not hold what that takes"),
        (("--definitions", "wild"), "unknown definition 'wild'"),
        (("--definitions", "sliding", "--stride", "48"), "stride is 48"),
        (("--targets", "24"), "targets is 24"),
        (("--lengths", "200"), "do not hold the longest length, 200"),
        (("--lengths", "1"), "lengths must be at least 2"),
        (("--format", "wild"), "invalid choice: 'wild'"),
        (("--lengths", "48", "--open"), "--open shows the page of what was measured"),
        (("--definitions", "longppl", "--evaluator", "ntk:2"), "evaluator ntk:2 was not measured"),
    ],
)
def test_other_numbers_that_cannot_be_had_are_one_line(
    copy: Path, shell: Shell, asked: tuple[str, ...], message: str
) -> None:
    assert message in shell.refused("report", "copy", *asked)


def test_text_that_was_written_before_a_run_was_killed_is_cut_to_its_results(
    place: Place, copy: Path
) -> None:
    three = dataclasses.replace(place.study, corpus=place.study.corpus.first(3))
    start(three, copy.parent / "three", *STRATEGIES)
    (copy / "results.json").write_bytes((copy.parent / "three" / "results.json").read_bytes())
    run = Archive.open(copy)
    assert len(run.corpus.excerpts) == 3
    assert run.rescore().to_json() == run.results.to_json()
