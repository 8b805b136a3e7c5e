"""Whether a config with the sizes of a well-known model still says what that was made with.

Mostly warnings: whoever trains a model further may change this on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from ropex.config.edits import Edit, Path
from ropex.config.entry import Entry, entries_of
from ropex.config.parts import NOTATIONS, Part
from ropex.config.values import MAX, close, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries, on_parts
from ropex.doctor.published import (
    BASES,
    FAMILIES,
    LENGTHS,
    LLAMA_3,
    LLAMA_31_FACTORS,
    LLAMA_31_LENGTH,
    USUAL_BASE,
    Published,
)
from ropex.engines.facts import ENGINES, MULTIPLYING, TRANSFORMERS

_ROUNDING = 0.01


@on_parts
def _family_base(part: Part) -> Iterator[Problem]:
    """A well-known model has a base that it was published with."""
    family = _family(part)
    if family is None or part.remote:
        return
    stated = _stated_bases(part)
    low = [path for path, base in stated.items() if base < family.base]
    if stated and not low:
        return
    if low:
        yield Problem(
            part.where(*low[0]),
            f"rope_theta is {stated[low[0]]:g}; {family.name} has {family.base:g} or more",
            tuple(part.set(*path, to=family.base) for path in low),
        )
    elif not _base_written(part) and not family.unsaid:
        yield Problem(
            part.where(),
            f"rope_theta is missing; {family.name} has {family.base:g} or more, and engines take "
            "10000 or another number of their own",
            _added(part, family.base),
        )


def _family(part: Part) -> Published | None:
    return next((family for family in FAMILIES if family.is_like(part)), None)


def _stated_bases(part: Part) -> dict[Path, float]:
    """Every base in a config that is a number, by its place."""
    places: list[tuple[Path, float | None]] = [(("rope_theta",), positive(part.raw, "rope_theta"))]
    places += [((*e.path, "rope_theta"), positive(e.raw, "rope_theta")) for e in _full(part)]
    return {path: base for path, base in places if base is not None}


def _full(part: Part) -> list[Entry]:
    """The entries of layers that see all tokens; those of a window may have a base of their own."""
    return [entry for entry in entries_of(part) if entry.layer_type != "sliding_attention"]


def _base_written(part: Part) -> bool:
    """Whether there is a base at all, even one that is not a number, which another rule reports."""
    raws = [part.raw, *(entry.raw for entry in entries_of(part))]
    return any(raw.get("rope_theta") is not None for raw in raws)


def _added(part: Part, base: float) -> tuple[Edit, ...]:
    new = [entry for entry in _full(part) if entry.path[0] == "rope_parameters"]
    return (part.set("rope_theta", to=base), *(entry.set("rope_theta", to=base) for entry in new))


@on_parts
def _family_scaling(part: Part) -> Iterator[Problem]:
    """Llama 3.1 has the scaling that it was published with, or another."""
    if _family(part) is not LLAMA_3 or part.remote or _scaled_or_broken(part):
        return
    if part.trained == LLAMA_31_LENGTH or positive(part.raw, MAX) != LLAMA_31_LENGTH:
        return
    if set(_stated_bases(part).values()) == {LLAMA_3.base}:
        yield Problem(
            part.where(),
            f"{MAX} is {LLAMA_31_LENGTH}, as in Llama 3.1 to 3.3, without their scaling; with the "
            f"base {LLAMA_3.base:g} alone, angles are new to the model beyond 8192 tokens",
            advice=f"write the llama3 entry of the model that it is made of, or {MAX} 8192 if that "
            "is Llama 3",
        )


def _scaled_or_broken(part: Part) -> bool:
    """Whether there is any scaling, even one that another rule reports."""
    entries = [part.raw.get(key) for key in NOTATIONS]
    if any(entry is not None and not isinstance(entry, dict) for entry in entries):
        return True
    return any(entry.kind != "default" or "factor" in entry.raw for entry in entries_of(part))


@on_parts
def _published_base(part: Part) -> Iterator[Problem]:
    """A config with the sizes of a well-known model has its base."""
    model = next((each for each in BASES if each.is_like(part)), None)
    longest = positive(part.raw, MAX)
    if model is None or part.remote or longest not in (*model.lengths, *model.shared):
        return
    lost = not _base_written(part)
    usual = longest in model.lengths and set(_stated_bases(part).values()) == {USUAL_BASE}
    if lost or usual:
        yield Problem(
            part.where("rope_theta") if usual else part.where(),
            f"the sizes are those of {model.name}, whose rope_theta is {model.base:g}; here it is "
            f"{'missing' if lost else f'{USUAL_BASE:g}'}",
            advice=f"write {model.base:g}, unless the model was trained with another base",
        )


@on_entries
def _published_factor(entry: Entry) -> Iterator[Problem]:
    """A config with the sizes of Llama 3.1, 3.2 or 3.3 has its factor."""
    part = entry.part
    if entry.kind != "llama3" or not LLAMA_3.is_like(part) or entry.longest != LLAMA_31_LENGTH:
        return
    hidden, layers = int(part.raw["hidden_size"]), int(part.raw["num_hidden_layers"])
    wanted = LLAMA_31_FACTORS[hidden, layers]
    if entry.factor is not None and entry.factor >= 1 and entry.factor != wanted:
        yield Problem(
            entry.where,
            f"factor is {entry.factor:g}; the model of the Llama 3 series with these sizes was "
            f"trained with {wanted:g}",
            advice=f"write {wanted:g}, unless the model was trained with another factor",
        )


@on_entries
def _published_length(entry: Entry) -> Iterator[Problem]:
    """A dynamic or linear entry does not stand beside a well-known length times its factor."""
    part, longest, factor = entry.part, entry.longest, entry.factor
    if entry.kind not in ("dynamic", "linear") or not longest or not factor or not entry.scaled:
        return
    model = next((each for each in LENGTHS if each.is_like(part)), None)
    known = entry.original or part.trained  # by which another rule reports it
    if model is None or part.remote or longest in model.lengths or known:
        return
    trained = [each for each in model.lengths if close(each * factor, longest, _ROUNDING)]
    if trained:
        yield Problem(
            part.where(MAX),
            f"{MAX} is {longest:g}, which is the factor {factor:g} times the {trained[0]} tokens "
            f"of {model.name}: "
            + (
                "the dynamic type takes it for the trained length, so nothing is scaled up to it"
                if entry.kind == "dynamic"
                else "vLLM and SGLang multiply it by the factor once more"
            ),
            advice=f"write {trained[0]}, unless the model was trained at {longest:g}",
            engines=TRANSFORMERS if entry.kind == "dynamic" else MULTIPLYING,
        )


PUBLISHED_RULES = (
    Rule("family-base", "error", ENGINES, _family_base),
    Rule("family-scaling", "warning", ENGINES, _family_scaling),
    Rule("published-base", "warning", ENGINES, _published_base),
    Rule("published-factor", "warning", ENGINES, _published_factor),
    Rule("published-length", "warning", (*TRANSFORMERS, *MULTIPLYING), _published_length),
)
