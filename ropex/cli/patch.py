"""`ropex patch`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ropex.cli.common import (
    Verbs,
    add_lift,
    add_model,
    add_strategy,
    add_verb,
    quiet,
    read_model,
    say,
)


def add_verbs(verbs: Verbs) -> None:
    """Add `patch`."""
    patch = add_verb(
        verbs, "patch", _patch, "write a checkpoint that computes a strategy without ropex",
        "ropex patch ./llama -s yarn:4 -o ./llama-16k",
    )  # fmt: skip
    add_model(patch)
    add_strategy(patch, "what to write", action="append", required=True)
    patch.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    add_lift(patch)
    patch.add_argument(
        "--link", action="store_true",
        help="hard-link the weights, which takes no space; they are then the files of MODEL under "
        "a second name, and what writes into one writes into both",
    )  # fmt: skip
    patch.add_argument("--force", action="store_true", help="replace the checkpoint in DIR")
    patch.add_argument(
        "--fold-temperature", action="store_true",
        help="put a temperature into the query weights, for engines that misread it in a config",
    )  # fmt: skip


def _patch(arguments: argparse.Namespace) -> None:
    from ropex.checkpoints.copies import LINKED
    from ropex.checkpoints.fold import without_temperature
    from ropex.checkpoints.write import save_patched
    from ropex.config.from_file import read_strategy
    from ropex.patching.handle import patch

    if len(arguments.strategy) > 1:
        both = "+".join(arguments.strategy)
        raise ValueError(f"a checkpoint holds one strategy; give one -s, or {both} to combine them")
    chosen = read_strategy(arguments.strategy[0])
    quiet()
    folder, model, _ = read_model(arguments)
    settings = {
        "trained_length": arguments.trained_length,
        "lift_sliding_window": arguments.lift_sliding_window,
    }
    patched, temperature = patch(model, chosen, **settings), 1.0
    if arguments.fold_temperature:
        temperature = float(patched.plan.attention_scale)
        patched.remove()
        patched = patch(model, without_temperature(chosen, temperature), **settings)
    kind = save_patched(
        folder, patched, arguments.out, force=arguments.force, temperature=temperature,
        link=arguments.link,
    )  # fmt: skip
    say(f"{patched}\nwritten to {arguments.out}, weights {kind}")
    if kind == "linked":
        say(f"ropex: warning: {LINKED}")
    say(_unserved(arguments))


def _unserved(arguments: argparse.Namespace) -> str:
    """Lines on the engines for which the checkpoint is not enough; transformers warns itself."""
    from ropex.engines import unserved
    from ropex.engines.facts import TRANSFORMERS
    from ropex.errors import UnsupportedModel

    try:
        found = unserved(
            arguments.out, trained_length=arguments.trained_length,
            trust_remote_code=arguments.trust_remote_code,
        )  # fmt: skip
    except (UnsupportedModel, ValueError) as error:  # the checkpoint is written all the same
        return f"what other engines compute from it is not known: {error}"
    lines = []
    for helped, said in (
        (True, "a different model as it stands; `{}` prints what is missing"),
        (False, "not known to compute it; `{}` says why"),
    ):
        names = [
            each.engine
            for each in found
            if each.engine not in TRANSFORMERS and (each.exactness != "not expressible") == helped
        ]
        if names:
            engine = names[0] if len(names) == 1 else "ENGINE"
            command = f"ropex export {shlex.quote(str(arguments.out))} --for {engine}"
            lines.append(f"{', '.join(names)}: {said.format(command)}")
    return "\n".join(lines)
