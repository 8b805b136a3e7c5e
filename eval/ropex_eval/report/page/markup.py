"""HTML from values: everything that is not markup yet is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

_VOID = frozenset({"br", "input", "meta"})


class Markup(str):
    """Text that is already HTML."""


def tag(name: str, /, *content: str, **attributes: object) -> Markup:
    """An element.

    Args:
        name: Of the element.
        content: Its content; escaped unless it is `Markup`.
        attributes: `class_` is `class`, and `_` inside a name is `-`; True is an attribute without
            a value, None and False none at all.
    """
    given = "".join(
        _attribute(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    closed = "" if name in _VOID else f"{join(content)}</{name}>"
    return Markup(f"<{name}{given}>{closed}")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after another, each escaped unless it is `Markup`."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def _attribute(name: str, value: object) -> str:
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: What is read.
        kind: Classes that say how it looks.
        note: Shown on hovering.
        style: Values for the style sheet.
        label: Shown beside it where the header does not fit.
    """

    content: str
    kind: str | None = None
    note: str | None = None
    style: str | None = None
    label: str | None = None


Row: TypeAlias = Sequence[str | Cell]


def table(
    caption: str, header: Sequence[str], rows: Sequence[Row], kind: str = "numbers"
) -> Markup:
    """A table whose first column names the rows, in a frame that scrolls sideways if needed."""
    head = tag("tr", *(tag("th", each, scope="col") for each in header))
    body = [tag("tr", *_row(row)) for row in rows]
    inner = (tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return tag(
        "div", tag("table", *inner, class_=kind), class_="scroll", tabindex=0, role="region",
        aria_label=caption,
    )  # fmt: skip


def _row(row: Row) -> list[Markup]:
    cells = [each if isinstance(each, Cell) else Cell(each) for each in row]
    return [
        tag(
            "th" if place == 0 else "td",
            cell.content,
            scope="row" if place == 0 else None,
            class_=cell.kind,
            title=cell.note,
            style=cell.style,
            data_label=cell.label,
        )
        for place, cell in enumerate(cells)
    ]
