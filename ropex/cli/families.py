"""`ropex families`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ropex.cli.common import Verbs, add_verb, count, quiet

if TYPE_CHECKING:
    from ropex.families.check import Family

_FEW = 10  # up to so many model types without rotary embeddings are listed with the reason


def add_verbs(verbs: Verbs) -> None:
    """Add `families`."""
    parser = add_verb(
        verbs, "families", _families,
        "list the model types of the installed transformers, and prove that ropex patches them",
        "ropex families llama gemma3_text --check",
    )  # fmt: skip
    parser.add_argument(
        "types", nargs="*", metavar="TYPE", help="model types; by default all causal ones"
    )
    parser.add_argument(
        "--check", action="store_true", help="try each clause of the contract on a tiny model"
    )
    parser.add_argument("--json", action="store_true", help="print what was found for programs")


def _families(arguments: argparse.Namespace) -> None:
    quiet()
    import torch
    from tqdm import tqdm

    from ropex.families.check import check, look

    types = _known(arguments.types)
    torch.set_num_threads(1)  # more only get in each other's way on models as tiny as these
    find = check if arguments.check else look
    found = [find(each) for each in tqdm(types, disable=None, leave=False, unit="type")]
    print(json.dumps([asdict(f) for f in found], indent=2) if arguments.json else render(found))
    if failed := [family.model_type for family in found if not family.passed]:
        print(f"ropex: failed: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def _known(types: list[str]) -> list[str]:
    """The model types asked for.

    Raises:
        ValueError: transformers maps one to no causal language model.
    """
    from ropex.families.tiny import causal_types

    known = causal_types()
    for each in types:
        if each not in known:
            close = get_close_matches(each, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"transformers has no causal language model of type {each!r}{hint}"
                " (ropex families lists them)"
            )
    return types or list(known)


def render(families: list[Family]) -> str:
    """What was found, as text."""
    from ropex_eval.report.terminal import align

    rotary = [family for family in families if family.status == "rotary"]
    clauses = list(rotary[0].outcomes) if rotary else []
    rows = [["family", *clauses, "tables"]] if rotary else []
    for family in rotary:
        marks = [_mark(family.outcomes[clause].passed) for clause in clauses]
        rows.append([family.model_type, *marks, ", ".join(family.tables)])
    lines = [align(rows, numbers=False)] if rows else []
    for family in rotary:
        for clause, outcome in family.outcomes.items():
            if outcome.passed is not True and outcome.detail:
                lines.append(f"{family.model_type}: {clause}: {outcome.detail}")
    plain = [family for family in families if family.status == "no rotary"]
    for family in families:
        if family.status == "not built" or (len(plain) <= _FEW and family in plain):
            lines.append(f"{family.model_type}: {family.status}: {family.reason}")
    if len(plain) > _FEW:
        names = ", ".join(family.model_type for family in plain)
        lines.append(textwrap.fill(f"no rotary embeddings: {names}", 100))
    return "\n".join([*lines, _total(families, len(rotary))])


def _total(families: list[Family], rotary: int) -> str:
    have = "has" if rotary == 1 else "have"
    return f"{rotary} of {count(len(families), 'model type')} {have} rotary embeddings"


def _mark(passed: bool | None) -> str:
    return {True: "yes", False: "NO", None: "-"}[passed]
