"""`ropex doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, count, say, size
from ropex.engines.facts import ENGINES, engine_name

if TYPE_CHECKING:
    from ropex.doctor import Finding, Repair

_ORDER = ("error", "warning", "note")


def add_verbs(verbs: Verbs) -> None:
    """Add `doctor`."""
    parser = add_verb(
        verbs, "doctor", _doctor,
        "find what is wrong with the rotary part of a checkpoint, and fix it (exit status 1 if "
        "something is wrong)",
        "ropex doctor ./llama --for vllm", "ropex doctor ./llama --fix",
    )  # fmt: skip
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT",
        help="a folder, of a model or of an adapter; a .gguf file; a hub id; or demo",
    )  # fmt: skip
    parser.add_argument(
        "--fix", action="store_true",
        help="fix what can be fixed without knowing what was meant, and keep config.json.bak",
    )  # fmt: skip
    parser.add_argument(
        "--trained-length", type=size, metavar="N",
        help="tokens that the model was trained at, where its files do not say it; --fix writes it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print findings for programs")
    parser.add_argument(
        "--for", "--engine", dest="engine", metavar="ENGINE",
        help=f"only what goes wrong there: {', '.join(ENGINES)}",
    )  # fmt: skip


def _doctor(arguments: argparse.Namespace) -> None:
    from ropex.doctor import Repair, diagnose, repair

    name, trained = arguments.checkpoint, arguments.trained_length
    engine = arguments.engine and engine_name(arguments.engine)
    path = _find(name, arguments.fix)
    if arguments.fix:
        done = repair(path, engine=engine, trained_length=trained)
    else:
        done = Repair((), diagnose(path, engine=engine, trained_length=trained), ())
    print(json.dumps(_describe(done), indent=2) if arguments.json else _text(done, name))
    for backup in done.backups:
        say(f"the old file is kept as {backup}")
    if any(finding.severity != "note" for finding in done.left):
        raise SystemExit(1)


def _find(model: str, fix: bool) -> Path:
    """The path that is meant: one of the user's, or a checkpoint of the hub."""
    if Path(model).exists():
        return Path(model)
    if fix:
        raise FileNotFoundError(f"no such folder: {model!r}; only files of your own are fixed")
    from ropex.checkpoints.find import find

    return find(model, weights=False)


def _describe(done: Repair) -> dict[str, Any]:
    return {
        "findings": [finding.to_json() for finding in done.left],
        "fixed": [finding.to_json() for finding in done.mended],
        "backups": [str(path) for path in done.backups],
    }


def _text(done: Repair, model: str) -> str:
    """One line for each finding, under the file that it is about."""
    lines = [f"fixed {each.rule}: {each.where}: {each.fix}" for each in done.mended]
    by_severity = sorted(done.left, key=lambda finding: _ORDER.index(finding.severity))
    files: dict[str, list[Finding]] = {}
    for finding in by_severity:
        files.setdefault(finding.where.split(": ")[0], []).append(finding)
    for file, findings in files.items():
        lines += [file, *(f"  {_line(finding, file)}" for finding in findings)]
    lines.append(_verdict(by_severity, model))
    return "\n".join(lines)


def _line(finding: Finding, file: str) -> str:
    place = finding.where.removeprefix(file).removeprefix(": ")
    start = f"{finding.severity} {finding.rule}" + (f" in {place}" if place else "")
    who = ", ".join(finding.engines)
    mend = f" {'--fix' if finding.fixable else 'To do'}: {finding.fix}." if finding.fix else ""
    return f"{start}: {finding.message}.{mend} [{who}]"


def _verdict(findings: list[Finding], model: str) -> str:
    bad = [each for each in findings if each.severity != "note"]
    fixable = sum(each.fixable for each in bad)
    if not bad:
        return f"{model}: ok"
    more = f"; --fix can fix {fixable} of them" if fixable else ""
    return f"{model}: {count(len(bad), 'finding')}{more}"
