"""`ropex suggest`."""

from __future__ import annotations

import argparse
import json
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_model, add_verb, name_of, quiet, read_model, size
from ropex.cli.suggestion import SOURCES, render
from ropex.sizes import format_size

if TYPE_CHECKING:
    from ropex.advice.candidates import Candidate
    from ropex.engines.wanted import Wanted
    from ropex.rope import Rope
    from ropex.strategies.base import Strategy

_COMPARED = 3  # strategies that the command for `ropex eval` compares with none


def add_verbs(verbs: Verbs) -> None:
    """Add `suggest`."""
    parser = add_verb(
        verbs, "suggest", _suggest,
        "advise on strategies for a length in closed form, without running the model",
        "ropex suggest ./llama --length 32k",
    )  # fmt: skip
    add_model(parser)
    parser.add_argument("--length", type=size, required=True, metavar="N", help="tokens to read")
    parser.add_argument("--json", action="store_true", help="print numbers for programs")


def _suggest(arguments: argparse.Namespace) -> None:
    from ropex.advice.candidates import candidates, require_beyond
    from ropex.model.rotary import main_site, sites
    from ropex.model.window import near_only, window_of

    quiet()
    folder, model, rope = read_model(arguments, weights=False)
    require_beyond(rope, arguments.length)
    found = sites(model)
    site, near = main_site(found), near_only(model, found, rope.trained_length)
    ranked: list[Candidate] = []
    left_out: dict[str, str] = {}
    if near is None:  # else no distance is new to what rotates
        ranked, left_out = candidates(
            rope, arguments.length, _in_model(folder, model, arguments.trained_length)
        )
    window = window_of(model.config)
    about = {
        "model": arguments.model,
        "model_type": model.config.model_type,
        **_bounds(rope, arguments.length),
        "own_scaling": site.scaled_by(),
        "switches_at": rope.lists.length if rope.lists else None,
        "sliding_window": window if window is not None and window < arguments.length else None,
        "rotates_within": near,
        "candidates": [_describe(candidate) for candidate in ranked],
        "left_out": left_out,
        "sources": SOURCES,
        "engine_sources": _sources(ranked),
    }
    about["next"] = _next(arguments, about)
    print(json.dumps(about, indent=2) if arguments.json else render(about))


def _in_model(folder: Path, model: Any, trained_length: int | None) -> Callable[[Strategy], Wanted]:
    """What strategies make of a model; the advice itself says what patching would warn of."""
    from ropex.engines.wanted import of_model
    from ropex.files.untrusted import read_json

    raw = read_json(folder / "config.json")

    def wanted(strategy: Strategy) -> Wanted:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return of_model(model, raw, [strategy], trained_length=trained_length)

    return wanted


def _sources(ranked: list[Candidate]) -> dict[str, str]:
    """Where the statements on each engine come from."""
    return {each.engine: each.source for candidate in ranked[:1] for each in candidate.engines}


def _bounds(rope: Rope, length: int) -> dict[str, Any]:
    """What the model was trained with, and what theory says of `length` tokens."""
    from ropex.advice import bounds
    from ropex.rope import Plan

    return {
        "trained_length": rope.trained_length, "length": length, "rotary_dim": rope.dim,
        "rope_theta": rope.base, "critical_pair": bounds.critical_pair(rope),
        "critical_dimension": bounds.critical_dimension(rope),
        "outside_unscaled": int((~bounds.inside(rope, Plan.unchanged(rope), length)).sum()),
        "smallest_factor": length / rope.trained_length,
        "base_bound": bounds.base_bound(rope.dim, length),
        "base_bound_fit": bounds.base_fit(length),
    }  # fmt: skip


def _describe(candidate: Candidate) -> dict[str, Any]:
    return {
        "strategy": str(candidate.strategy), "length_class": candidate.strategy.length_class,
        "pairs_outside": candidate.outside, "untrained_results": candidate.untrained,
        "phase_change": candidate.phase, "logit_factor": candidate.logits,
        "written_as": candidate.written_as,
        "engines": {each.engine: each.verdict for each in candidate.engines},
        "notes": {each.engine: each.reason for each in candidate.engines},
        "paper": candidate.strategy.paper,
    }  # fmt: skip


def _next(arguments: argparse.Namespace, about: dict[str, Any]) -> list[str]:
    """The commands that measure the first candidates, and keep the one that most engines read."""
    model, length = arguments.model, format_size(about["length"])
    options = ["--trust-remote-code"] if arguments.trust_remote_code else []
    options += ["--lift-sliding-window"] if about["sliding_window"] else []
    if arguments.trained_length is not None:
        options += ["--trained-length", format_size(arguments.trained_length)]
    first = [each for each in about["candidates"] if not each["pairs_outside"]][:_COMPARED]
    compared = [part for each in first for part in ("-s", each["strategy"])]
    lengths = ",".join(map(format_size, _doublings(about["trained_length"], about["length"])))
    commands = [["ropex", "eval", model, "-s", "none", *compared, "--lengths", lengths, *options]]
    if kept := max(first, key=_served, default=None):
        out = f"./{name_of(model)}-{length}"
        if _served(kept):
            commands.append(["ropex", "patch", model, "-s", kept["strategy"], "-o", out, *options])
    return [shlex.join(command) for command in commands]


def _served(described: dict[str, Any]) -> int:
    return list(described["engines"].values()).count("yes")


def _doublings(first: int, last: int) -> list[int]:
    lengths = [first]
    while lengths[-1] * 2 < last:
        lengths.append(lengths[-1] * 2)
    return [*lengths, last]
