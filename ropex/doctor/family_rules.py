"""The base of well-known models, and whether a config of theirs still has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ropex.config.edits import Edit, Path
from ropex.config.entry import Entry, entries_of
from ropex.config.parts import NOTATIONS, Part
from ropex.config.values import MAX, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_parts
from ropex.engines.facts import ENGINES


@dataclass(frozen=True)
class Family:
    """Models that are told by their sizes, and were published with no base below one.

    Attributes:
        name: As people call it.
        model_type: In config.json, and in GGUF files.
        vocabulary: Size of it.
        shapes: Hidden size and layers of each published model.
        base: The smallest that any of them was published with.
        unsaid: Whether published configs may leave it out, and engines take it then.
    """

    name: str
    model_type: str
    vocabulary: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    base: float
    unsaid: bool = False


# From the published configs. Sizes that do not tell a family for certain are left out: Qwen2.5
# shares some with Qwen2.5-Math, whose base is 10000; Code Llama shares its own with any Llama 2
# whose vocabulary was padded to 32016; the Yi models of 9 billion parameters do not all have the
# base of the others.
_LLAMA_3 = Family(
    "Llama 3", "llama", (128256,),
    ((2048, 16), (3072, 28), (4096, 32), (8192, 80), (16384, 126)), 5e5,
)  # fmt: skip
_LLAMA_31_MAX = 131072
_FAMILIES = (
    _LLAMA_3,
    Family("Yi", "llama", (64000,), ((7168, 60),), 5e6),
    Family("Mistral Nemo", "mistral", (131072,), ((5120, 40),), 1e6),
    Family(
        "Qwen2.5", "qwen2", (151936, 152064), ((896, 24), (2048, 36), (5120, 48), (5120, 64)), 1e6
    ),
    Family(
        "Qwen3", "qwen3", (151936,),
        ((1024, 28), (2048, 28), (2560, 36), (4096, 36), (5120, 40), (5120, 64)), 1e6,
    ),
    Family("gpt-oss", "gpt_oss", (201088,), ((2880, 24), (2880, 36)), 1.5e5),
    Family("Phi-4", "phi3", (100352,), ((5120, 40),), 2.5e5),
    Family("OLMo 2", "olmo2", (100352,), ((2048, 16), (4096, 32), (5120, 40), (5120, 64)), 5e5),
    Family(
        "Gemma 3", "gemma3_text", (262144, 262208),
        ((1152, 26), (2560, 34), (3840, 48), (5376, 62)), 1e6, unsaid=True,
    ),
)  # fmt: skip


def family_of(
    model_type: str, vocabulary: float | None, hidden: float | None, layers: float | None
) -> Family | None:
    """The family that a model with these sizes is of; None if there is no telling."""
    for family in _FAMILIES:
        same_type = model_type.replace("-", "_") == family.model_type  # GGUF has gpt-oss
        if same_type and vocabulary in family.vocabulary and (hidden, layers) in family.shapes:
            return family
    return None


@on_parts
def _family_base(part: Part) -> Iterator[Problem]:
    """A well-known model has a base that it was published with."""
    family = _family(part)
    if family is None or part.remote:
        return
    stated = stated_bases(part)
    low = [path for path, base in stated.items() if base < family.base]
    if stated and not low:
        return
    if low:
        yield Problem(
            part.where(*low[0]),
            f"rope_theta is {stated[low[0]]:g}; {family.name} has {family.base:g} or more",
            tuple(part.set(*path, to=family.base) for path in low),
        )
    elif not base_written(part) and not family.unsaid:
        yield Problem(
            part.where(),
            f"rope_theta is missing; {family.name} has {family.base:g} or more, and engines take "
            "10000 or another number of their own",
            _added(part, family.base),
        )


def _family(part: Part) -> Family | None:
    sizes = (positive(part.raw, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
    return family_of(part.model_type, *sizes)


def stated_bases(part: Part) -> dict[Path, float]:
    """Every base in a config that is a number, by its place."""
    places: list[tuple[Path, float | None]] = [(("rope_theta",), positive(part.raw, "rope_theta"))]
    places += [((*e.path, "rope_theta"), positive(e.raw, "rope_theta")) for e in _full(part)]
    return {path: base for path, base in places if base is not None}


def _full(part: Part) -> list[Entry]:
    """The entries of layers that see all tokens; those of a window may have a base of their own."""
    return [entry for entry in entries_of(part) if entry.layer_type != "sliding_attention"]


def base_written(part: Part) -> bool:
    """Whether there is a base at all, be it no number, which another rule tells."""
    raws = [part.raw, *(entry.raw for entry in entries_of(part))]
    return any(raw.get("rope_theta") is not None for raw in raws)


def _added(part: Part, base: float) -> tuple[Edit, ...]:
    new = [entry for entry in _full(part) if entry.path[0] == "rope_parameters"]
    return (part.set("rope_theta", to=base), *(entry.set("rope_theta", to=base) for entry in new))


@on_parts
def _family_scaling(part: Part) -> Iterator[Problem]:
    """Llama 3.1 has the scaling that it was published with, or another."""
    if _family(part) is not _LLAMA_3 or part.remote or _scaled_or_broken(part):
        return
    if part.trained == _LLAMA_31_MAX or positive(part.raw, MAX) != _LLAMA_31_MAX:
        return
    if set(stated_bases(part).values()) == {_LLAMA_3.base}:
        yield Problem(
            part.where(),
            f"{MAX} is {_LLAMA_31_MAX}, as in Llama 3.1 to 3.3, without their scaling; with the "
            f"base {_LLAMA_3.base:g} alone, angles are new to the model beyond 8192 tokens",
            advice=f"write the llama3 entry of the model that it is made of, or {MAX} 8192 if that "
            "is Llama 3",
        )


def _scaled_or_broken(part: Part) -> bool:
    """Whether there is any scaling, be it one that another rule finds fault with."""
    entries = [part.raw.get(key) for key in NOTATIONS]
    if any(entry is not None and not isinstance(entry, dict) for entry in entries):
        return True
    return any(entry.kind != "default" or "factor" in entry.raw for entry in entries_of(part))


FAMILY_RULES = (
    Rule("family-base", "error", ENGINES, _family_base),
    Rule("family-scaling", "warning", ENGINES, _family_scaling),
)
