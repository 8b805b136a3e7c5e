"""`ropex train`."""

from __future__ import annotations

import argparse
import atexit
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, quiet, say

if TYPE_CHECKING:
    from ropex.train.recipes.recipe import Recipe


def add_verbs(verbs: Verbs) -> None:
    """Add `train`."""
    train = add_verb(
        verbs, "train", _train,
        "fine-tune a model under a strategy by a recipe; the same command goes on with a run that "
        "was interrupted",
        "ropex train yarn-64k model=./my-llama training.steps=200 -o runs/my-llama-64k",
    )  # fmt: skip
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, or one of ropex recipes")
    train.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE",
        help="values to change, such as training.learning_rate=1e-5",
    )  # fmt: skip
    train.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: runs/RECIPE")
    train.add_argument(
        "--dry-run", action="store_true",
        help="check the recipe, and print what it would do and the memory it would take",
    )  # fmt: skip


def _train(arguments: argparse.Namespace) -> None:
    from ropex.train.recipes.reading import find_recipe, read_recipe

    path = find_recipe(arguments.recipe)
    recipe = read_recipe(path, arguments.changes)
    out = arguments.out or Path("runs") / path.stem
    quiet()
    if arguments.dry_run:
        print(_plan(recipe, _watch(recipe, out)))
        return
    from accelerate import PartialState

    from ropex.train.recipes.run import train
    from ropex.train.recipes.trainer import accelerated

    state = PartialState(cpu=not accelerated())
    atexit.register(state.destroy_process_group)  # its threads may abort an interpreter that ends
    train(recipe, out, _watch(recipe, out), tell=say)
    if state.is_main_process:
        say(f"written to {out / 'final'}")
        if recipe.evaluate is not None:
            from ropex_eval.training.trained import Trained, table

            print(table([Trained.read(out)]))


def _plan(recipe: Recipe, watch: Any) -> str:
    """What a recipe would do, and what would be measured meanwhile."""
    from ropex.checkpoints.find import find
    from ropex.checkpoints.loading import load_tokenizer
    from ropex.train.recipes.plan import plan

    if watch is None:
        return plan(recipe)
    trusted = recipe.trust_remote_code
    tokenizer = load_tokenizer(find(recipe.model), trust_remote_code=trusted)
    return f"{plan(recipe)}\n{watch.plan(tokenizer)}"


def _watch(recipe: Recipe, out: Path) -> Any:
    """What measures perplexity meanwhile; None if the recipe asks for nothing."""
    if recipe.evaluate is None:
        return None
    from ropex_eval.training.trained import Watch

    given = recipe.evaluate
    return Watch(
        out, data=given.data, lengths=given.lengths, excerpts=given.excerpts, every=given.every,
        bos=recipe.stages[0].data.bos, trained_length=recipe.trained_length, tell=say,
    )  # fmt: skip
