"""Well-known models, and whether a config with their sizes still says what they were made with.

Warnings all: who trains a model further may change this with intent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ropex.doctor.family_rules import base_written, stated_bases
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import Entry, Part, on_entries, on_parts
from ropex.doctor.values import MAX, close, positive
from ropex.engines.facts import ENGINES, MULTIPLYING, TRANSFORMERS

_USUAL_BASE = 1e4  # what converters and engines write or take where they know no other
_ROUNDING = 0.01


@dataclass(frozen=True)
class Published:
    """Models that are told by their sizes.

    Attributes:
        name: As people call them.
        model_type: In config.json.
        vocabulary: Sizes of it.
        shapes: Hidden size and layers of each.
        lengths: `max_position_embeddings` that they were published with.
        base: Their `rope_theta`.
        shared: Lengths at which another published model of these sizes has the usual base.
        experts: Of a mixture; 0 where that tells nothing.
    """

    name: str
    model_type: str
    vocabulary: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    base: float = _USUAL_BASE
    shared: tuple[int, ...] = ()
    experts: int = 0

    def is_like(self, part: Part) -> bool:
        """Whether a config has these sizes."""
        shape = tuple(positive(part.raw, key) for key in ("hidden_size", "num_hidden_layers"))
        experts = positive(part.raw, "num_local_experts") or self.experts
        return (
            part.model_type == self.model_type
            and positive(part.raw, "vocab_size") in self.vocabulary
            and shape in self.shapes
            and self.experts in (0, experts)
        )


# From the published configs. Shared are those of R1 Distill Qwen, which is made of Qwen2.5 Math.
_BASES = (
    Published("Qwen2.5 1.5B", "qwen2", (151936,), ((1536, 28),), (32768,), 1e6, (131072,)),
    Published("Qwen2.5 7B", "qwen2", (152064,), ((3584, 28),), (32768,), 1e6, (131072,)),
    Published("Qwen2.5 72B", "qwen2", (152064,), ((8192, 80),), (32768, 131072), 1e6),
    Published("Code Llama", "llama", (32016,), ((4096, 32), (5120, 40)), (16384,), 1e6),
    Published("Code Llama 34B", "llama", (32000,), ((8192, 48),), (16384,), 1e6),
    Published("Mistral 7B v0.3", "mistral", (32768,), ((4096, 32),), (32768,), 1e6),
    Published("Mixtral 8x7B", "mixtral", (32000,), ((4096, 32),), (32768,), 1e6, experts=8),
    Published(
        "Mixtral 8x22B", "mixtral", (32000, 32768), ((6144, 56),), (65536,), 1e6, experts=8
    ),
)  # fmt: skip
_LENGTHS = (
    Published(
        "Llama 1 or 2", "llama", (32000,), ((4096, 32), (5120, 40), (6656, 60), (8192, 80)),
        (2048, 4096),
    ),
    Published("Llama 3", "llama", (128256,), ((4096, 32), (8192, 80)), (8192, 131072)),
    Published("Mistral 7B", "mistral", (32000, 32768), ((4096, 32),), (32768,)),
    Published("Gemma 2", "gemma2", (256000,), ((2304, 26), (3584, 42), (4608, 46)), (8192,)),
)  # fmt: skip
# Of each shape of Llama 3.1, 3.2 and 3.3: the factor of its llama3 entry.
_LLAMA_31 = 131072
_FACTORS = {
    (4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0,
}  # fmt: skip
_SMALL = Published("Llama 3.1", "llama", (128256,), tuple(_FACTORS), (_LLAMA_31,))


@on_parts
def _published_base(part: Part) -> Iterator[Problem]:
    """A config with the sizes of a well-known model has its base."""
    model = next((each for each in _BASES if each.is_like(part)), None)
    longest = positive(part.raw, MAX)
    if model is None or part.remote or longest not in (*model.lengths, *model.shared):
        return
    lost = not base_written(part)
    usual = longest in model.lengths and set(stated_bases(part).values()) == {_USUAL_BASE}
    if lost or usual:
        yield Problem(
            part.where("rope_theta") if usual else part.where(),
            f"the sizes are those of {model.name}, whose rope_theta is {model.base:g}; here it is "
            f"{'missing' if lost else f'{_USUAL_BASE:g}'}",
            advice=f"write {model.base:g}, unless the model was trained with another base",
        )


@on_entries
def _published_factor(entry: Entry) -> Iterator[Problem]:
    """A config with the sizes of Llama 3.1, 3.2 or 3.3 has its factor."""
    part = entry.part
    if entry.kind != "llama3" or not _SMALL.is_like(part) or entry.longest != _LLAMA_31:
        return
    hidden, layers = int(part.raw["hidden_size"]), int(part.raw["num_hidden_layers"])
    wanted = _FACTORS[hidden, layers]
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
    model = next((each for each in _LENGTHS if each.is_like(part)), None)
    known = entry.original or part.trained  # by which another rule tells it
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
    Rule("published-base", "warning", ENGINES, _published_base),
    Rule("published-factor", "warning", ENGINES, _published_factor),
    Rule("published-length", "warning", (*TRANSFORMERS, *MULTIPLYING), _published_length),
)
