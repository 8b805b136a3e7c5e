"""Where the numbers of a run come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ropex.sizes import format_size
from ropex_eval.report.page.markup import Markup, join, table, tag
from ropex_eval.report.page.sections import fold, section
from ropex_eval.report.page.words import model_name, plural, size
from ropex_eval.scores.results import Results


def head(results: Results) -> Markup:
    """Which model was read on which text."""
    found = len(results.about.get("warnings") or ())
    link = tag("a", plural(found, "warnings"), href="#warnings") if found else Markup()
    name = tag("h1", model_name(results.about))
    return tag("header", name, tag("p", summary(results), " ", link, class_="lead"))


def summary(results: Results) -> Markup:
    """Trained length, text and lengths, on one line."""
    model, data = results.about.get("model", {}), results.about.get("data", {})
    lengths = sorted({row.length for row in results.results})
    parts = []
    if model.get("trained_length"):
        parts.append(f"trained at {size(model['trained_length'])}")
    if lengths:
        first = f"{format_size(lengths[0])} to " if len(lengths) > 1 else ""
        parts.append(f"read at {first}{size(lengths[-1])}")
    if data.get("source"):
        parts.append(f"text: {data['source']}{_amount(data)}")
    return join([" · ".join(parts)])


def _amount(data: Mapping[str, Any]) -> str:
    if not data.get("excerpts"):
        return ""
    of = f" of {size(data['tokens'])}" if data.get("tokens") else ""
    found = data.get("documents")
    source = f" from {plural(len(found), 'documents')}" if found else ""
    return f" ({plural(data['excerpts'], 'excerpts')}{of}{source})"


def protocol(results: Results) -> Markup:
    """Where the numbers come from: everything that is known of the run."""
    about = results.about
    parts = [described(title, values) for title, values in origins(results).items() if values]
    command = about.get("command")
    ran = tag("div", tag("h3", "command"), tag("pre", tag("code", str(command))))
    shown = (
        warnings(about), ran if command else "", tag("div", *parts, class_="about"),
        _strategies(results.strategies),
    )  # fmt: skip
    return section("Where this comes from", *shown, place="about")


def origins(results: Results) -> dict[str, Mapping[str, Any]]:
    """What is known of a run, part by part; a part that it does not tell is empty."""
    known = {**results.about, "protocol": results.protocol.stored}
    return {part: known.get(part) or {} for part in ("model", "data", "protocol", "versions")}


def warnings(about: Mapping[str, Any], of: str = "") -> Markup:
    """The warnings of the run."""
    found = [str(each) for each in about.get("warnings") or ()]
    if not found:
        return Markup()
    return tag("div", tag("h3", f"warnings{of}"), tag("ul", *(tag("li", each) for each in found)),
               class_="warnings", id="warnings")  # fmt: skip


def described(title: str, values: Mapping[str, Any]) -> Markup:
    """Names and values of one part of it."""
    pairs = [part for key, value in values.items()
             for part in (tag("dt", key.replace("_", " ")), tag("dd", said(value)))]  # fmt: skip
    return tag("div", tag("h3", title), tag("dl", *pairs))


def said(value: Any) -> str:
    """A value in words; a long list is folded away."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        joined = ", ".join(map(str, value))
        return joined if len(joined) < 120 else fold(f"{len(value)} of them", joined)
    return str(value)


def _strategies(strategies: Mapping[str, Mapping[str, Any]]) -> Markup:
    known = [key for key in ("length_class", "attention_scale", "inv_freq_sha256")
             if any(key in info for info in strategies.values())]  # fmt: skip
    if not known:
        return Markup()
    rows = [[tag("code", text), *(said(info.get(key)) for key in known)]
            for text, info in strategies.items()]  # fmt: skip
    header = ["strategy", *(key.replace("_", " ") for key in known)]
    return table("Strategies in full", header, rows, "facts")
