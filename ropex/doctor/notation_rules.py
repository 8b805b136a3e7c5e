"""Rules on how an entry is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from ropex.config.edits import shown
from ropex.config.entry import Entry, entries_of
from ropex.config.families import BASES, SHARES
from ropex.config.parts import NOTATIONS, Part
from ropex.config.values import KEYS, MAX, ORIGINAL, PARAMETERS
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries, on_parts
from ropex.engines.facts import ENGINES, TRANSFORMERS

# Of some families: axial of vision towers, ntk_alpha of HunYuan.
_TYPES_OF_FAMILIES = ("axial", "ntk_alpha")
_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", ORIGINAL, *PARAMETERS)
_AT_ROOT = (*NOTATIONS, MAX, ORIGINAL, *BASES, *SHARES)
# Keys of other meanings that some config of transformers 4.57 or 5.23 has.
_RESEMBLING = frozenset({
    "left_max_position_embeddings", "t2u_max_position_embeddings", "max_2d_position_embeddings",
    "num_position_embeddings",
})  # fmt: skip
_WITHOUT_TYPE = ("factor", "short_factor", "long_factor", "low_freq_factor", "beta_fast")


@on_parts
def _not_an_entry(part: Part) -> Iterator[Problem]:
    """An entry is an object or null."""
    for key in NOTATIONS:
        value = part.raw.get(key)
        if value is not None and not isinstance(value, dict) and not part.remote:
            yield Problem(
                part.where(key),
                f"{key} is {shown(value)}; it must be an object or null",
                advice='write an object, such as {"rope_type": "yarn", "factor": 4.0, ...}',
            )


@on_entries
def _missing_type(entry: Entry) -> Iterator[Problem]:
    """An entry that scales says its type."""
    if "rope_type" in entry.raw or "type" in entry.raw or entry.part.remote:
        return
    if present := [key for key in _WITHOUT_TYPE if entry.raw.get(key) is not None]:
        twin = _typed_twin(entry)
        yield Problem(
            entry.where,
            f"there is {present[0]} but no rope_type, so nothing is scaled",
            (entry.set("rope_type", twin.kind),) if twin else (),
            advice=f"add rope_type: one of {', '.join(KEYS)}",
        )


def _typed_twin(entry: Entry) -> Entry | None:
    """The entry of the other notation that says all of this one, and its type."""
    others = [each for each in entries_of(entry.part) if each.path[0] != entry.path[0]]
    twins = [each for each in others if each.raw.items() >= entry.raw.items() and _typed(each)]
    return twins[0] if len(others) == len(twins) == 1 else None


def _typed(entry: Entry) -> bool:
    return entry.kind in KEYS and ("rope_type" in entry.raw or "type" in entry.raw)


@on_entries
def _unknown_type(entry: Entry) -> Iterator[Problem]:
    """The type is one that engines know."""
    known = (*KEYS, *_TYPES_OF_FAMILIES)
    if entry.kind in known or entry.part.remote:
        return
    key = "rope_type" if "rope_type" in entry.raw else "type"
    value = entry.raw[key]
    meant = entry.kind.strip().casefold().replace("-", "").replace("_", "")
    edits = (entry.set(key, meant),) if meant in KEYS else ()
    near = difflib.get_close_matches(meant[:40], KEYS, 1)
    yield Problem(
        entry.where,
        f"{key} is {shown(value)}; engines know {', '.join(KEYS)}",
        edits,
        f"write {near[0]}, if that was meant" if near else "write one of these",
    )


@on_entries
def _type_keys_disagree(entry: Entry) -> Iterator[Problem]:
    """`type` and `rope_type` do not contradict each other."""
    if {"type", "rope_type"} <= entry.raw.keys() and entry.two_types:
        both = f"type is {shown(entry.raw['type'])} and rope_type {shown(entry.raw['rope_type'])}"
        yield Problem(
            entry.where,
            f"{both}: some engines go by the one, some by the other",
            advice="remove the wrong one of the two",
        )


@on_entries
def _two_type_keys(entry: Entry) -> Iterator[Problem]:
    """One key says the type."""
    if {"type", "rope_type"} <= entry.raw.keys() and not entry.two_types:
        yield Problem(
            entry.where,
            "type and rope_type say the same: harmless, until only one of them is edited",
            advice="keep rope_type alone when the entry is next edited",
        )


@on_entries
def _misspelt_key(entry: Entry) -> Iterator[Problem]:
    """Keys are spelled as engines read them."""
    taken = set(entry.raw)
    for key in entry.raw:
        meant = _meant(key, _KEYS)
        if meant is None or meant in taken or entry.part.remote:
            continue
        taken.add(meant)
        value = entry.raw[key]
        yield Problem(
            entry.where,
            f"no engine reads {shown(key)}; {meant} is meant, it seems",
            (entry.remove(key), entry.set(meant, value)),
        )


def _meant(key: str, known: tuple[str, ...]) -> str | None:
    """The known key that an unknown one resembles; None if there is none."""
    folded = key[:60].casefold().replace("-", "_")
    near = difflib.get_close_matches(folded, known, 1, cutoff=0.9)
    return near[0] if near and key not in known else None


@on_parts
def _misspelt_root_key(part: Part) -> Iterator[Problem]:
    """Keys beside the entry are spelled as engines read them."""
    taken = {key for key in part.raw if part.raw[key] is not None}
    for key, value in part.raw.items():
        meant = _meant(key, _AT_ROOT)
        if meant is None or value is None or key in _RESEMBLING or part.remote:
            continue
        free = meant not in taken
        taken.add(meant)
        if free or value != part.raw.get(meant):
            yield Problem(
                part.where(key),
                f"no engine reads {shown(key)}; {meant} is meant, it seems"
                + ("" if free else ", which is there as well and says something else"),
                (part.remove(key), part.set(meant, to=value)) if free else (),
                f"remove it, or write what is meant as {meant}",
                severity=None if free else "warning",
            )


NOTATION_RULES = (
    Rule("not-an-entry", "error", ENGINES, _not_an_entry),
    Rule("missing-type", "error", ENGINES, _missing_type),
    Rule("unknown-type", "error", ENGINES, _unknown_type),
    Rule("type-keys-disagree", "error", ENGINES, _type_keys_disagree),
    Rule("two-type-keys", "note", TRANSFORMERS, _two_type_keys),
    Rule("misspelt-key", "warning", ENGINES, _misspelt_key),
    Rule("misspelt-root-key", "error", ENGINES, _misspelt_root_key),
)
