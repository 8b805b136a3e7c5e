"""Rules on configs that transformers 4 and 5 read differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ropex.config.edits import Edit, shown
from ropex.config.entry import Entry, entries_of
from ropex.config.families import KEYS_IN_4, defaults_in_4
from ropex.config.notations import is_nested, keys_in_4, misread_by_4
from ropex.config.parts import Part
from ropex.config.values import KEYS, MAX, ORIGINAL, close, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries, on_parts
from ropex.engines.facts import ENGINES


@on_parts
def _one_notation(part: Part) -> Iterator[Problem]:
    """A family that transformers 4 knows is written in its notation as well."""
    wanted = keys_in_4(part)
    if wanted is None or any(contradicts(part, key, wanted[key]) for key in wanted):
        return
    taken = defaults_in_4(part.model_type)
    lost = [
        key
        for key, value in wanted.items()
        if part.raw.get(key) is None and value != taken.get(key)
    ]
    if lost:
        yield Problem(
            part.where("rope_parameters"),
            "only transformers 5 reads rope_parameters; 4 ignores it without a word, and takes "
            f"{' and '.join(f'{key} {shown(taken.get(key))}' for key in lost)}",
            tuple(part.set(key, to=wanted[key]) for key in lost),
        )


@on_parts
def _notations_disagree(part: Part) -> Iterator[Problem]:
    """Both notations, where both are there, say the same."""
    old, new = part.raw.get("rope_scaling"), part.raw.get("rope_parameters")
    wanted = keys_in_4(part)
    if wanted is None or not isinstance(new, dict):
        return
    wrong = sorted(key for key, value in wanted.items() if contradicts(part, key, value))
    if not wrong:
        return
    edits: tuple[Edit, ...] = ()
    typed = isinstance(old, dict) and not {"rope_type", "type"}.isdisjoint(old)
    settled = wrong == ["rope_scaling"] and typed and _comparable(old)["rope_type"] in KEYS
    if isinstance(old, dict) and settled and not is_nested(new):
        entry = {key: value for key, value in old.items() if key != "type"}
        entry["rope_type"] = old.get("rope_type", old.get("type"))
        kept = {key: new[key] for key in ("rope_theta", "partial_rotary_factor") if key in new}
        edits = (part.set("rope_parameters", to={**entry, **kept}),)
    reads = (
        "both versions of transformers take rope_scaling, others may not"
        if edits
        else "transformers 4 and 5 compute different models"
    )
    yield Problem(
        part.where(wrong[0]),
        f"{' and '.join(wrong)} and rope_parameters contradict each other: {reads}",
        edits,
        "decide which is right, and write it in both",
    )


def contradicts(part: Part, key: str, wanted: Any) -> bool:
    """Whether a key of transformers 4 is there and says something else than version 5 reads."""
    if key not in part.raw:
        return False
    value = part.raw[key]
    if key != "rope_scaling":
        return value is not None and value != wanted
    # null says "not scaled", unless nothing else of that notation is there either
    old = _comparable(value)
    if value is None and part.raw.get("rope_theta") is None:
        return False
    new = _comparable(wanted)
    return any(bool(old[shared] != new[shared]) for shared in old.keys() & new.keys())


def _comparable(scaling: Any) -> dict[str, Any]:
    raw = scaling if isinstance(scaling, dict) else {}
    others = {key: value for key, value in raw.items() if key != "type"}
    return {**others, "rope_type": Entry.alone(raw).kind}


@on_parts
def _refused_by_4(part: Part) -> Iterator[Problem]:
    """Transformers 4 reads a scaling of this family."""
    for entry in entries_of(part):
        if not entry.scaled or part.remote:
            continue
        numbers = {key: value for key, value in entry.raw.items() if not isinstance(value, dict)}
        plain = {**numbers, "rope_type": entry.kind, "rope_theta": 1.0}
        if said := misread_by_4(plain, part.model_type):
            yield Problem(
                entry.where,
                f"transformers 4 {said}",
                advice="load this checkpoint with transformers 5, or with ropex.patch",
            )


@on_entries
def _surplus_keys(entry: Entry) -> Iterator[Problem]:
    """An entry of Phi-3 or OLMo has no keys but those that transformers 4 takes."""
    if entry.path != ("rope_scaling",) or entry.part.remote:
        return
    if entry.part.model_type not in KEYS_IN_4:
        return
    keys = ("type", *KEYS_IN_4[entry.part.model_type][1])
    surplus = [key for key in entry.raw if key not in keys]
    if not surplus or not entry.scaled:
        return
    needless = all(_needless(entry, key) for key in surplus)
    edits = tuple(entry.remove(key) for key in surplus) if needless else ()
    if edits and "type" not in entry.raw:
        edits = (entry.set("type", entry.kind), *edits)
    yield Problem(
        entry.where,
        f"transformers 4 refuses {entry.part.model_type} with "
        f"{' and '.join(shown(key) for key in surplus[:4])} in rope_scaling; it takes "
        f"{', '.join(keys)}",
        edits,
        "load this checkpoint with transformers 5",
    )


def _needless(entry: Entry, key: str) -> bool:
    """Whether a key says what the rest of the config says anyway."""
    if key == "rope_type":
        return not entry.two_types
    root, longest = positive(entry.part.raw, ORIGINAL), positive(entry.part.raw, MAX)
    if key == ORIGINAL:
        return root is not None and root == positive(entry.raw, ORIGINAL)
    if key == "factor" and entry.kind == "longrope" and root and longest and entry.factor:
        return close(entry.factor, longest / root)
    return key == "rope_theta" and bool(entry.raw[key] == entry.part.raw.get(key))


VERSION_RULES = (
    Rule("notations-disagree", "error", ENGINES, _notations_disagree),
    Rule("one-notation", "warning", ("transformers4",), _one_notation),
    Rule("surplus-keys", "warning", ("transformers4",), _surplus_keys),
    Rule("refused-by-4", "warning", ("transformers4",), _refused_by_4),
)
