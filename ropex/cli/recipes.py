"""`ropex recipes`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ropex.cli.common import Verbs, add_verb, refuse, say
from ropex.files.writing import atomically


def add_verbs(verbs: Verbs) -> None:
    """Add `recipes`."""
    parser = add_verb(
        verbs, "recipes", _recipes, "list the recipes that ropex ships, or copy one to edit it",
        "ropex recipes 'yarn*'", "ropex recipes copy yarn-64k -o mine.yaml",
    )  # fmt: skip
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN|copy", help="a wildcard, or copy"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to copy")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="where to copy it (default: NAME.yaml)"
    )


def _recipes(arguments: argparse.Namespace) -> None:
    if arguments.pattern == "copy":
        _copy(arguments.name, arguments.out)
        return
    refuse(arguments, "is for ropex recipes copy NAME", "out")
    if arguments.name is not None:
        raise ValueError(f"{arguments.name!r}: give one pattern, or copy and a name")
    from ropex.train.recipes.reading import about, shipped_recipes

    found = shipped_recipes(arguments.pattern)
    if not found:
        raise ValueError(f"no recipe matches {arguments.pattern!r}; ropex recipes lists all")
    width = max(len(path.stem) for path in found)
    print("\n".join(f"{path.stem:<{width}}  {about(path)}" for path in found))


def _copy(name: str | None, out: Path | None) -> None:
    from ropex.train.recipes.reading import find_shipped

    if name is None:
        raise ValueError("name the recipe to copy, as in ropex recipes copy yarn-64k")
    source = find_shipped(name)
    target = out or Path(f"{source.stem}.yaml")
    if target.exists():
        raise FileExistsError(f"{target} exists; -o names another file")
    with atomically(target) as temporary:
        shutil.copyfile(source, temporary)
    say(f"written to {target}")
