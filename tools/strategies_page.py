"""Write docs/strategies.md and its pictures, from the docstrings and from what each strategy does.

Run it from the root of the repository: `python -m tools.strategies_page`.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import torch

from ropex.advice.bounds import inside, phase_change
from ropex.advice.candidates import UNTRAINED, written_as
from ropex.advice.pictures import draw
from ropex.engines.answer import VERDICTS
from ropex.engines.choose import NEAR
from ropex.engines.judge import exports
from ropex.engines.plain import wanted_in_llama
from ropex.engines.wanted import Wanted
from ropex.files.writing import write_text
from ropex.positions import PositionMap, seen_distances
from ropex.rope import Rope
from ropex.sizes import format_size
from ropex.strategies.base import PerLength, Scaled, Strategy, parameters
from ropex.strategies.mapped import Mapped
from ropex.strategies.registry import registry, strategy

# Llama 2, which the pictures and figures of the page are for.
_DIM, _BASE, _TRAINED, _FACTOR = 128, 1e4, 4096, 4

_DOCS = Path(__file__).resolve().parents[1] / "docs"

# Examples of strategies that take no factor and lack a default for some parameter.
_EXAMPLES = {
    "giraffe_power": "giraffe_power:0.1", "giraffe_truncated": "giraffe_truncated:2k",
    "longrope": "longrope:factor=4,long_factor=" + "/".join(f"{1 + i / 21:.4g}" for i in range(64)),
    "temperature": "temperature:1.07", "theta": "theta:500000",
}  # fmt: skip

GROUPS = {
    "Static frequencies": (
        "One set of frequencies for every length. Cached keys stay valid and a config carries the "
        "frequencies, so engines can serve them; the cost is on texts within the trained length. "
        "Use one of these to serve a model."
    ),
    "Frequencies by length": (
        "Nothing changes within the trained length, and a longer text is scaled as far as it "
        "needs. Use one of these if short texts must not change and ropex runs the model; "
        "`length=N` makes the dynamic ones static."
    ),
    "Sharper attention": (
        "Frequencies stay; attention becomes sharper, which keeps it from spreading over the many "
        "tokens of a long text. On their own they extend nothing: combine one with a scaling, as "
        "in `yarn:4+logn`."
    ),
    "Mapped positions": (
        "Frequencies stay; attention sees far keys at distances that occurred in training. Within "
        "the trained length nothing changes at all, unless `always=true`, and cached keys stay "
        "valid. No config can say it: ropex runs the model, and `ropex.save` keeps the strategy "
        "in its record. Add a frequency or a temperature, as in `dca+yarn:4` or `rerope+logn`."
    ),
}


@dataclass(frozen=True)
class Entry:
    """What the page says about one strategy.

    Attributes:
        cls: Its class.
        example: An instance for a model like Llama 2.
        rope: The rotary embedding of that model.
        wanted: What it makes of a Llama like that.
    """

    cls: type[Strategy]
    example: Strategy
    rope: Rope
    wanted: Wanted

    @property
    def group(self) -> str:
        """Where it stands on the page."""
        static, by_length, sharper, mapped = GROUPS
        if issubclass(self.cls, Mapped):
            return mapped
        if not self.cls.changes_frequencies and self.cls.name != "none":
            return sharper
        return static if self.example.length_class == "static" else by_length


def write_page(folder: Path) -> list[Path]:
    """Write `strategies.md` and its pictures below `folder`.

    Returns:
        The files written.
    """
    pictures = folder / "strategies"
    pictures.mkdir(parents=True, exist_ok=True)
    rope = Rope.standard(_DIM, _BASE, _TRAINED)
    drawn = [pictures / f"{name}.png" for name in registry()]
    written = [path for path in drawn if draw(example(registry()[path.stem]), rope, path)]
    page = folder / "strategies.md"
    write_text(page, text())
    return [page, *written]


def text() -> str:
    """The page, in Markdown."""
    rope = Rope.standard(_DIM, _BASE, _TRAINED)
    entries = [_entry(cls, rope) for cls in registry().values()]
    parts = [_head()]
    grouped = {name: [each for each in entries if each.group == name] for name in GROUPS}
    for name, members in grouped.items():
        group = f"[{name}](#{name.lower().replace(' ', '-')})"
        parts += [f"| {group} | what it does | parameters |", "|---|---|---|"]
        parts += [*(_row(each.cls) for each in members), ""]
    for name, members in grouped.items():
        parts.append(f"\n## {name}\n\n{_fill(GROUPS[name])}")
        parts += [_section(each) for each in members]
    return "\n".join(parts) + "\n"


def example(cls: type[Strategy]) -> Strategy:
    """The instance that is drawn.

    Raises:
        TypeError: The strategy needs parameters, and `_EXAMPLES` has none for it.
    """
    if cls.name in _EXAMPLES:
        return strategy(_EXAMPLES[cls.name])
    build: Callable[..., Strategy] = cls
    return build(factor=float(_FACTOR)) if issubclass(cls, Scaled) else build()


def meanings(cls: type[Strategy]) -> dict[str, str]:
    """What each parameter is, from the Args sections of the class and of those it derives from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Args:\n")
        block = section.partition("\n\n")[0]
        for name, meaning in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", block, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found


def _entry(cls: type[Strategy], rope: Rope) -> Entry:
    chosen = example(cls)
    return Entry(cls, chosen, rope, wanted_in_llama(rope, chosen))


def _head() -> str:
    target = format_size(_FACTOR * _TRAINED)
    intro = (
        f"Written by `python -m tools.strategies_page`. Pictures and figures are for the rotary "
        f"embedding of Llama 2 (64 pairs, base 10000, trained at {format_size(_TRAINED)} tokens) "
        f"and a factor of {_FACTOR} where there is one: how many times longer the wavelength of "
        "each pair becomes, with a line at the critical pair, the last that made a full turn in "
        "training, and a cross where a pair no longer turns. For strategies that leave the "
        "frequencies alone: the factor of attention logits, by the position of the query, or the "
        "distance at which the last query of three lengths sees keys, by the true distance."
    )
    advice = (
        "`ropex show MODEL -s S -s S --png FILE` draws strategies for your model, "
        f"`ropex suggest MODEL --length {target}` ranks them for your model."
    )
    verdicts = "; ".join(f"{word}: {said}" for word, said in VERDICTS.items())
    engines = f"Engines are judged for a plain Llama. {verdicts}."
    return "\n\n".join(["# Strategies", *map(_fill, (intro, advice, engines))]) + "\n"


def _row(cls: type[Strategy]) -> str:
    """A strategy in the table of contents."""
    defaults = {each.name: _default(each.default).strip("`") for each in parameters(cls)}
    listed = [
        f"`{name}`" if default in ("", "required") else f"`{name}={default}`"
        for name, default in defaults.items()
    ]
    summary = inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]
    return f"| [`{cls.name}`](#{cls.name}) | {summary} | {', '.join(listed) or 'none'} |"


def _section(entry: Entry) -> str:
    cls = entry.cls
    summary, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    body = rest.partition("Args:\n")[0].strip()
    aliases = ", ".join(f"`{alias}`" for alias in cls.aliases)
    lines = [f"\n### {cls.name}\n", f"**{summary}**" + (f" Also {aliases}." if aliases else "")]
    if cls.name != "none":
        lines += ["", f"![{cls.name}](strategies/{cls.name}.png)"]
    lines += ["", body, "", f"- Formula: {_formula(cls)}", f"- Source: <{cls.paper}>"]
    lines += [f"- When: {_when(entry)}", f"- Here: {_figures(entry)}", *_compatibility(entry)]
    return "\n".join([*lines, *_parameters(cls)])


def _formula(cls: type[Strategy]) -> str:
    """The first paragraph of the docstring of the method that decides."""
    said = cls.map if issubclass(cls, Mapped) else cls.apply
    return " ".join((inspect.getdoc(said) or "").partition("\n\n")[0].split())


def _when(entry: Entry) -> str:
    static, by_length, _, mapped = GROUPS
    if entry.cls.name == "none":
        return "as the baseline of every comparison."
    if entry.group == by_length:
        return "texts within the trained length must not change, and ropex runs the model."
    if entry.group == mapped:
        return "short texts must not change, and ropex runs the model."
    if entry.group != static:
        return "combined with a scaling, for long texts over which attention spreads too thin."
    if not issubclass(entry.cls, Scaled):
        return "the model continues training with it, or it is combined with a scaling."
    if source := UNTRAINED.get(entry.cls.name):
        return f"one factor serves all lengths, also without further training ({source})."
    return (
        "one factor serves all lengths; published results are of models that continued training "
        "with it, so measure before you use it without."
    )


def _parameters(cls: type[Strategy]) -> list[str]:
    known, said = parameters(cls), meanings(cls)
    if not known:
        return ["", "No parameters."]
    rows = [f"| `{each.name}` | {_default(each.default)} | {said[each.name]} |" for each in known]
    return ["", "| parameter | default | meaning |", "|---|---|---|", *rows]


def _default(value: Any) -> str:
    if value is MISSING:
        return "required"
    if value is None or value == ():
        return ""
    return f"`{str(value).lower().removesuffix('.0')}`"


def _figures(entry: Entry) -> str:
    """What the example changes at the target and below the trained length, in closed form."""
    rope, length = entry.rope, _FACTOR * entry.rope.trained_length
    near, far = (entry.example.plan(rope, tokens) for tokens in (rope.trained_length, length))
    outside = int((~inside(rope, far, length)).sum())
    known = "every pair sees trained angles only" if not outside else (
        f"{outside} of {rope.dim // 2} pairs see new angles")  # fmt: skip
    cost = f"the angle over 64 tokens changes by up to {phase_change(rope, near):.2g} radians"
    if not phase_change(rope, near):
        cost = "no frequency moves"
    sharper = float(near.attention_scale) ** 2
    heat = f", logits x {sharper:.2f}" if sharper != 1 else ""
    name = str(entry.example)
    shown = name if len(name) < 60 else f"{entry.cls.name} with an even list"
    if far.positions is not None:
        return f"with `{shown}`, {_distances(far.positions, rope, length)}."
    return (
        f"with `{shown}`, {known} at {format_size(length)}; within the trained length {cost}{heat}."
    )


def _distances(positions: PositionMap, rope: Rope, length: int) -> str:
    """What a map makes of the distances to the last query of a text."""
    reach = seen_distances(positions, length - 1, rope.dim // 2).nan_to_num().max()
    inert = not positions.level(torch.tensor([rope.trained_length - 1]))
    near = "nothing changes" if inert else "far keys are seen nearer too"
    return (
        f"the last query of {format_size(length)} tokens sees distances up to {reach:.4g}; within "
        f"the trained length {near}"
    )


def _compatibility(entry: Entry) -> list[str]:
    plan, kernels = entry.example.plan(entry.rope), "any, as only cos and sin change"
    if plan.positions is not None:
        kernels = "its own beyond the trained length, and the model's (eager or sdpa) within it"
    elif plan.query_scale is not None:
        kernels = (
            "those that transformers calls by name (eager, sdpa, flash attention), as queries are "
            "scaled before them"
        )
    if entry.example.length_class != "static":
        kernels += "; eager or sdpa with an un-rotated cache"
    return [
        f"- Key-value cache: {_cache(entry)}.", f"- Attention kernels: {kernels}.",
        f"- Saved config: {written_as(entry.wanted)}.", f"- Engines: {_engines(entry.wanted)}.",
    ]  # fmt: skip


def _engines(wanted: Wanted) -> str:
    """Engines by what they make of the config that `ropex patch` writes."""
    named: dict[str, list[str]] = {}
    for each in exports(wanted.patched):
        said: str = each.verdict
        if each.verdict == "no":
            said += f" ({each.reason.partition('; ')[0]})"
        elif each.bound:
            said += f" (within {each.bound:.1g})" if each.bound <= NEAR else " (at one length)"
        named.setdefault(said, []).append(each.engine)
    return "; ".join(f"{', '.join(names)}: {verdict}" for verdict, names in named.items())


def _cache(entry: Entry) -> str:
    if entry.example.length_class == "static":
        return "valid at any length"
    fixed = ", or fix `length=N`" if issubclass(entry.cls, PerLength) else ""
    return (
        "a cache of rotated keys cannot grow past the trained length; patch with "
        f'`cache="unrotated"`{fixed}'
    )


def _fill(paragraph: str) -> str:
    return textwrap.fill(paragraph, 100, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    print(f"written: {len(write_page(_DOCS))} files in {_DOCS}")
