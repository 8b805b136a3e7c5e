"""Rules on single values of an entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ropex.config.edits import Edit, Path, shown
from ropex.config.entry import Entry, entries_of
from ropex.config.families import BASES, SHARES
from ropex.config.parts import Part
from ropex.config.values import (
    MAX,
    ORIGINAL,
    PARAMETERS,
    allowed,
    positive,
    range_of,
    spelled,
    whole,
)
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries, on_parts
from ropex.engines.facts import ENGINES, MULTIPLYING, TRANSFORMERS

_LENGTHS = (MAX, ORIGINAL)
_AT_ROOT = (*_LENGTHS, *BASES, *SHARES)
_NO_NUMBERS = ("truncate", "short_factor", "long_factor")
_IN_ENTRY = (
    "rope_theta", SHARES[0], ORIGINAL, *(key for key in PARAMETERS if key not in _NO_NUMBERS)
)  # fmt: skip
_NOT_NULL = (MAX, "rope_theta")  # null is no way to say that a family's own number is meant
_NEEDS_FACTOR = ("linear", "dynamic", "yarn", "llama3")


@on_parts
def _bad_number(part: Part) -> Iterator[Problem]:
    """Values that must be numbers are numbers, finite and above 0."""
    yield from _bad_in(part, (), part.raw, _AT_ROOT)
    for entry in entries_of(part):
        yield from _bad_in(part, entry.path, entry.raw, _IN_ENTRY)


def _bad_in(
    part: Part, path: Path, raw: Mapping[str, Any], keys: tuple[str, ...]
) -> Iterator[Problem]:
    for key in keys:
        value = raw.get(key)
        if value is None and (key not in _NOT_NULL or key not in raw or part.remote):
            continue
        if allowed(key, value) or (part.remote and isinstance(value, list)):
            continue  # code of a checkpoint's own may take a list, one for each layer
        meant = spelled(value)
        edits: tuple[Edit, ...] = ()
        if meant is not None and meant > 0 and allowed(key, meant):
            new = whole(meant) if key in _LENGTHS else meant
            edits = (part.set(*path, key, to=new),)
        yield Problem(
            part.where(*path, key),
            f"{key} is {shown(value)}; it must be a finite {range_of(key)}",
            edits,
            "write the number that was meant",
        )


@on_entries
def _bad_flag(entry: Entry) -> Iterator[Problem]:
    """Whether YaRN's ramp is rounded to whole pairs is said by true or false."""
    value = entry.raw.get("truncate", True)
    if entry.kind != "yarn" or isinstance(value, bool):
        return
    text = value.strip().casefold() if isinstance(value, str) else ""
    meant = {"true": True, "false": False}.get(text)
    edits = () if meant is None else (entry.set("truncate", meant),)
    yield Problem(
        entry.where,
        f"truncate is {shown(value)}; it must be true or false: to transformers, every text is "
        "true, and null is false",
        edits,
        "write true, or leave it out, where the ramp is rounded to whole pairs, else false",
    )


@on_entries
def _integer_factor(entry: Entry) -> Iterator[Problem]:
    """The factor is written with a decimal point."""
    value = entry.raw.get("factor")
    latent = entry.part.latent  # DeepSeek's own file has an integer, which its config converts
    if type(value) is not int or latent or entry.factor is None or entry.kind == "default":
        return
    crash = entry.kind == "linear"
    yield Problem(
        entry.where,
        f"factor is the integer {value}: "
        + (
            "the linear type of vLLM and SGLang stops with an error"
            if crash
            else "some versions of transformers warn at every load"
        ),
        (entry.set("factor", float(value)),),
        severity=None if crash else "note",
        engines=MULTIPLYING if crash else TRANSFORMERS,
    )


@on_parts
def _float_length(part: Part) -> Iterator[Problem]:
    """Lengths are integers."""
    places = [((), part.raw), *((entry.path, entry.raw) for entry in entries_of(part))]
    for path, raw in places:
        for key in _LENGTHS:
            value, found = raw.get(key), positive(raw, key)
            if not isinstance(value, float) or found is None:
                continue
            edits = (part.set(*path, key, to=int(found)),) if found.is_integer() else ()
            yield Problem(
                part.where(*path, key),
                f"{key} is {value!r}; it must be an integer"
                + (": transformers 5 refuses to load it" if key == MAX else ""),
                edits,
                "write how many tokens were meant",
                severity=None if key == MAX else "warning",
            )


@on_entries
def _factor_below_one(entry: Entry) -> Iterator[Problem]:
    """The factor is at least 1."""
    if entry.factor is not None and entry.factor < 1 and entry.kind in _NEEDS_FACTOR:
        yield Problem(
            entry.where,
            f"factor is {shown(entry.raw['factor'])}: below 1 it shortens the context",
            advice=f"write how many times longer the context becomes; {1 / entry.factor:g} if the "
            "fraction was upside down",
        )


@on_entries
def _missing_factor(entry: Entry) -> Iterator[Problem]:
    """A type that scales by a factor has one."""
    if entry.kind not in _NEEDS_FACTOR or entry.raw.get("factor") is not None:
        return
    if entry.kind == "dynamic" and "alpha" in entry.raw:  # Hunyuan's
        return
    known = entry.stretch if entry.kind == "yarn" else None  # as transformers 5 takes it
    edits = (entry.set("factor", known),) if known and known > 1 else ()
    yield Problem(
        entry.where,
        f"the {entry.kind} type has no factor: transformers 4 stops with an error",
        edits,
        "write how many times longer the context becomes",
    )


@on_entries
def _scaling_off(entry: Entry) -> Iterator[Problem]:
    """An entry of the default type has no factor."""
    factor = entry.factor
    if entry.kind == "default" and factor and factor != 1 and _says_type(entry.raw):
        yield Problem(
            entry.where,
            f"the type is default, so the factor {factor:g} is ignored without a word",
            advice="write the rope_type that was meant, or remove the factor",
        )


def _says_type(raw: Mapping[str, Any]) -> bool:
    return "rope_type" in raw or "type" in raw


_ALL = ENGINES
NUMBER_RULES = (
    Rule("bad-number", "error", _ALL, _bad_number),
    Rule("bad-flag", "error", _ALL, _bad_flag),
    Rule("float-length", "error", TRANSFORMERS, _float_length),
    Rule("integer-factor", "warning", (*TRANSFORMERS, *MULTIPLYING), _integer_factor),
    Rule("factor-below-one", "error", _ALL, _factor_below_one),
    Rule("missing-factor", "error", _ALL, _missing_factor),
    Rule("scaling-off", "warning", _ALL, _scaling_off),
)
