"""`ropex train`, `ropex trained` and `ropex recipes`."""

from __future__ import annotations

import argparse
import atexit
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropex.cli.common import Verbs, add_verb, quiet, say
from ropex.files.writing import atomically

if TYPE_CHECKING:
    from ropex.train.recipes.recipe import Recipe


def add_verbs(verbs: Verbs) -> None:
    """Add `train`, `trained` and `recipes`."""
    train = add_verb(
        verbs,
        "train",
        _train,
        "fine-tune a model under a strategy by a recipe; the same command goes on with a run that "
        "was interrupted",
        "ropex train yarn-64k model=./my-llama training.steps=200 -o runs/my-llama-64k",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a YAML file, or one of ropex recipes")
    train.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="what to do otherwise, such as training.learning_rate=1e-5",
    )
    train.add_argument("-o", "--out", type=Path, metavar="DIR", help="default: runs/RECIPE")
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="check the recipe, and print what it would do and the memory that it takes",
    )
    _add_trained(verbs)
    _add_recipes(verbs)


def _add_trained(verbs: Verbs) -> None:
    trained = add_verb(
        verbs,
        "trained",
        _trained,
        "print perplexity by length of training runs, before and after; no model is needed",
        "ropex trained runs/demo-linear runs/demo-yarn",
    )
    trained.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    trained.add_argument(
        "--steps", type=_steps, default=(), metavar="N,N", help="default: the first and the last"
    )
    trained.add_argument("--format", default="text", choices=("text", "markdown"))


def _add_recipes(verbs: Verbs) -> None:
    recipes = add_verb(
        verbs,
        "recipes",
        _recipes,
        "list the recipes that ropex ships; `ropex recipes copy NAME` writes one to edit",
        "ropex recipes 'yarn*'",
    )
    recipes.add_argument("pattern", nargs="?", default="*", metavar="PATTERN|copy")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="what to copy")
    recipes.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to copy it (default: NAME.yaml)"
    )


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
            print(_table([out], as_markdown=False))


def _plan(recipe: Recipe, watch: Any) -> str:
    """What a recipe would do, and what would be measured meanwhile."""
    from ropex.checkpoints.find import find, load_tokenizer
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
        out,
        data=given.data,
        lengths=given.lengths,
        excerpts=given.excerpts,
        every=given.every,
        bos=recipe.stages[0].data.bos,
        trained_length=recipe.trained_length,
        tell=say,
    )


def _trained(arguments: argparse.Namespace) -> None:
    print(_table(arguments.runs, arguments.steps, as_markdown=arguments.format == "markdown"))


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no steps; write 0,50,200") from None


def _table(folders: list[Path], steps: tuple[int, ...] = (), *, as_markdown: bool) -> str:
    from ropex_eval.training.trained import Trained, table

    return table([Trained.read(folder) for folder in folders], steps, as_markdown=as_markdown)


def _recipes(arguments: argparse.Namespace) -> None:
    from ropex.train.recipes.reading import about, find_shipped, shipped_recipes

    if arguments.pattern == "copy":
        if arguments.name is None:
            raise ValueError("name the recipe to copy, as in ropex recipes copy yarn-64k")
        source = find_shipped(arguments.name)
        target = arguments.out or Path(f"{source.stem}.yaml")
        if target.exists():
            raise FileExistsError(f"{target} exists; -o names another file")
        with atomically(target) as temporary:
            shutil.copyfile(source, temporary)
        say(f"written to {target}")
        return
    if arguments.name is not None:
        raise ValueError(f"{arguments.name!r}: give one pattern, or copy and a name")
    found = shipped_recipes(arguments.pattern)
    if not found:
        raise ValueError(f"no recipe matches {arguments.pattern!r}; ropex recipes lists all")
    width = max(len(path.stem) for path in found)
    print("\n".join(f"{path.stem:<{width}}  {about(path)}" for path in found))
