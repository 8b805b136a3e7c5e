"""Draw docs/packages.svg: the packages, from the imports in the code, and what each is for.

Run it from the root of the repository: `python -m tools.packages_picture`. An arrow leads from a
package to one that it imports from; where a longer way leads to the same package, it is left out.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable
from html import escape
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
PICTURE = _ROOT / "docs/packages.svg"
_ROOTS = (_ROOT / "ropex", _ROOT / "eval/ropex_eval")

_WIDTH, _HEIGHT = 152, 80  # of a box
_GAP, _DROP = 12, 32  # between boxes, between rows
_COLORS = {"ropex": "#e8eefb", "ropex_eval": "#fdf0dc"}
_COLUMNS = {
    "families": 0, "advice": 1, "engines": 1, "patching": 1.5, "attention": 1.5, "model": 1.5,
    "config": 1.5, "strategies": 2.25, "checkpoints": 1.5, "doctor": 2, "train": 2, "cli": 2.5,
    "texts": 2.75, "parity": 3, "training": 4, "report": 4, "scores": 4, "api": 5, "running": 5,
    "tasks": 5, "measure": 5, "study": 5,
}  # fmt: skip

Graph = dict[str, set[str]]


def packages() -> dict[str, Path]:
    """Every package by its name, with the file that says what it is for.

    The ground floor, which all import from, is left out.
    """
    inner = [path for root in _ROOTS for path in root.glob("*/__init__.py")]
    found = {path.parent.name: path for path in sorted(inner) if path.parent.name != "files"}
    api = _ROOTS[1] / "api.py"
    return found | ({"api": api} if api.exists() else {})


def imports() -> Graph:
    """Package to the packages that it imports from, type-checking imports included."""
    known = packages()
    found: Graph = {}
    for name, path in known.items():
        files = path.parent.rglob("*.py") if path.name == "__init__.py" else [path]
        nodes = [node for each in files for node in ast.walk(ast.parse(each.read_text("utf-8")))]
        dotted = [
            f"{node.module}.{alias.name}".split(".")
            for node in nodes
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        ours = {parts[1] for parts in dotted if parts[0] in ("ropex", "ropex_eval")}
        found[name] = ours & known.keys() - {name}
    return found


def reduced(graph: Graph) -> Graph:
    """The graph without arrows that a longer way makes superfluous."""
    below = {name: set(_below(graph, name)) for name in graph}
    return {
        name: {to for to in tos if not any(to in below[other] for other in tos - {to})}
        for name, tos in graph.items()
    }


def _below(graph: Graph, name: str) -> Iterable[str]:
    for to in graph[name]:
        yield to
        yield from _below(graph, to)


def places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Upper left corner of each box: in a row as high as its importers allow."""
    importers: Graph = {name: {a for a, tos in graph.items() if name in tos} for name in graph}

    def row(name: str) -> int:
        return 1 + max(map(row, importers[name]), default=-1)

    return {
        name: (_GAP + _COLUMNS[name] * (_WIDTH + _GAP), _GAP + row(name) * (_HEIGHT + _DROP))
        for name in graph
    }


def svg() -> str:
    """The picture."""
    graph = reduced(imports())
    at = places(graph)
    width = max(x for x, _ in at.values()) + _WIDTH + _GAP
    height = max(y for _, y in at.values()) + _HEIGHT + _GAP
    lines = [_arrow(at[a], at[b]) for a, tos in graph.items() for b in sorted(tos)]
    boxes = [_box(name, path, *at[name]) for name, path in packages().items()]
    return "\n".join([_HEAD.format(width=width, height=height), *lines, *boxes, "</svg>\n"])


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" \
width="{width:g}" height="{height:g}" font-family="Helvetica, Arial, sans-serif">
<rect width="100%" height="100%" fill="white"/>
<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" \
orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#8a94a6"/></marker>"""


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to_x, to_y = end[0] + _WIDTH / 2, end[1]
    late, bend = y + 0.85 * (to_y - y), max(16, 0.25 * (to_y - y))
    return (
        f'<path d="M{x:g},{y:g} C{x:g},{late:g} {to_x:g},{to_y - bend:g} {to_x:g},{to_y:g}" '
        'fill="none" stroke="#8a94a6" stroke-width="1.2" marker-end="url(#head)"/>'
    )


def _box(name: str, path: Path, x: float, y: float) -> str:
    about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()[0]
    root = next(root.name for root in _ROOTS if path.is_relative_to(root))
    lines = [
        f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
        f'fill="{_COLORS[root]}" stroke="#b9c2d0"/>',
        f'<text x="{x + 9:g}" y="{y + 18:g}" font-size="13" font-weight="bold">{name}</text>',
    ]
    for number, line in enumerate(textwrap.wrap(about.rstrip("."), 26)):
        lines.append(
            f'<text x="{x + 9:g}" y="{y + 34 + 13 * number:g}" font-size="11" fill="#444">'
            f"{escape(line)}</text>"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
    print(f"written: {PICTURE}")
