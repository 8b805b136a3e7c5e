"""Rules on which layers, and which part of a model, an entry is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ropex.config.edits import Edit, dotted
from ropex.config.entry import entries_of
from ropex.config.families import BASE_IN_4, BY_LAYER
from ropex.config.notations import keys_in_4
from ropex.config.parts import NOTATIONS, Part, inner_parts
from ropex.config.values import positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_parts
from ropex.doctor.version_rules import contradicts
from ropex.engines.facts import ENGINES, TRANSFORMERS

_FULL, _LOCAL = "full_attention", "sliding_attention"


@on_parts
def _ignored_entry(part: Part) -> Iterator[Problem]:
    """A family with an entry for each layer type does not have one for all."""
    raw = part.raw.get("rope_parameters")
    if not isinstance(raw, dict) or part.model_type not in BY_LAYER or part.remote:
        return
    flat = {key: value for key, value in raw.items() if not isinstance(value, dict)}
    if not any(value is not None for key, value in flat.items() if key not in (_FULL, _LOCAL)):
        return
    ignores = not BY_LAYER[part.model_type].stops
    yield Problem(
        part.where("rope_parameters"),
        f"transformers 5 takes an entry for each layer type of {part.model_type}, and "
        + ("ignores this one for all without a word" if ignores else "stops at one for all"),
        _nested(part, flat) if ignores and flat == raw else (),
        f"write it under {_FULL}, with an entry of the type default under {_LOCAL}",
    )


def _nested(part: Part, entry: dict[str, Any]) -> tuple[Edit, ...]:
    """The edit that gives an entry to the layers with full attention, as transformers 4 does.

    None where the notation of transformers 4 is there as well, and says something else.
    """
    base = positive(entry, "rope_theta") or positive(part.raw, "rope_theta")
    base = base or BASE_IN_4.get(part.model_type)
    family = BY_LAYER[part.model_type]
    local = positive(part.raw, family.local_key) if family.local_key else None
    layers = {
        _FULL: _with_base(entry, base),
        _LOCAL: _with_base({"rope_type": "default"}, local or family.local_base or base),
    }
    edit = part.set("rope_parameters", to=layers)
    after = Part(part.path, {**part.raw, "rope_parameters": layers}, part.remote)
    wanted = keys_in_4(after) or {}
    return () if any(contradicts(after, key, value) for key, value in wanted.items()) else (edit,)


def _with_base(entry: dict[str, Any], base: float | None) -> dict[str, Any]:
    return entry if base is None or "rope_theta" in entry else {**entry, "rope_theta": base}


@on_parts
def _layers_of_one(part: Part) -> Iterator[Problem]:
    """A family with one rotary embedding has one entry, not one for each layer type."""
    if part.model_type not in BASE_IN_4 or part.model_type in BY_LAYER or part.remote:
        return
    for key in NOTATIONS:
        raw = part.raw.get(key)
        if not isinstance(raw, dict):
            continue
        layers = [raw[name] for name in (_FULL, _LOCAL) if name in raw]
        if not any(isinstance(layer, dict) for layer in layers):
            continue
        same = all(layer == layers[0] for layer in layers) and raw.keys() <= {_FULL, _LOCAL}
        yield Problem(
            part.where(key),
            f"{part.model_type} has one rotary embedding for all layers: entries for each layer "
            "type are ignored without a word, or the model is not built",
            (part.set(key, to=layers[0]),) if same else (),
            f"write the one entry that all layers are to have as {key}",
        )


@on_parts
def _outer_entry(part: Part) -> Iterator[Problem]:
    """The entry of a language model stands in its own part of the config."""
    inner = next(inner_parts(part), None)
    if inner is None or part.remote:
        return
    scaled = {entry.path[0] for entry in entries_of(part) if entry.scaled}
    for key in sorted(scaled):
        if inner.raw.get(key) == part.raw[key]:
            continue
        free = inner.raw.get(key) is None
        edits = (part.remove(key), inner.set(key, to=part.raw[key])) if free else ()
        yield Problem(
            part.where(key),
            f"the language model reads its own part, {dotted(inner.path)}, and ignores this entry",
            edits,
            f"write the entry that is meant in {dotted(inner.path)}, and remove this one",
        )


LAYER_RULES = (
    Rule("outer-entry", "error", ENGINES, _outer_entry),
    Rule("ignored-entry", "error", TRANSFORMERS, _ignored_entry),
    Rule("layers-of-one", "error", TRANSFORMERS, _layers_of_one),
)
