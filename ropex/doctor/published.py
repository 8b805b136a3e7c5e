"""Well-known models, recognised by their sizes, and what they were published with."""

from __future__ import annotations

from dataclasses import dataclass

from ropex.config.parts import Part
from ropex.config.values import positive

USUAL_BASE = 1e4
"""What converters and engines write or take where they know no other."""


@dataclass(frozen=True)
class Published:
    """Models that are recognised by their sizes.

    Attributes:
        name: As people call them.
        model_type: In config.json, and in GGUF files.
        vocabulary: Sizes of it.
        shapes: Hidden size and layers of each.
        base: Their `rope_theta`; in `FAMILIES`, the smallest that any was published with.
        lengths: `max_position_embeddings` that they were published with.
        shared: Lengths at which another published model of these sizes has the usual base.
        experts: Of a mixture; 0 where they do not matter.
        unsaid: Whether published configs may leave the base out, and engines take it then.
    """

    name: str
    model_type: str
    vocabulary: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    base: float = USUAL_BASE
    lengths: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    experts: int = 0
    unsaid: bool = False

    def has(
        self,
        model_type: str,
        vocabulary: float | None,
        hidden: float | None,
        layers: float | None,
        experts: float | None = None,
    ) -> bool:
        """Whether these are its sizes."""
        return (
            model_type.replace("-", "_") == self.model_type  # GGUF has gpt-oss
            and vocabulary in self.vocabulary
            and (hidden, layers) in self.shapes
            and self.experts in (0, experts or self.experts)
        )

    def is_like(self, part: Part) -> bool:
        """Whether a config has these sizes."""
        keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_local_experts")
        return self.has(part.model_type, *(positive(part.raw, key) for key in keys))


# From the published configs. Sizes that do not identify a family are left out: Qwen2.5
# shares some with Qwen2.5-Math, whose base is 10000; Code Llama shares its own with any Llama 2
# whose vocabulary was padded to 32016; the Yi models of 9 billion parameters do not all have the
# base of the others.
LLAMA_3 = Published(
    "Llama 3", "llama", (128256,),
    ((2048, 16), (3072, 28), (4096, 32), (8192, 80), (16384, 126)), 5e5,
)  # fmt: skip
FAMILIES = (
    LLAMA_3,
    Published("Yi", "llama", (64000,), ((7168, 60),), 5e6),
    Published("Mistral Nemo", "mistral", (131072,), ((5120, 40),), 1e6),
    Published("Qwen2.5", "qwen2", (151936, 152064), ((896, 24), (2048, 36), (5120, 48), (5120, 64)),
        1e6),
    Published("Qwen3", "qwen3", (151936,),
        ((1024, 28), (2048, 28), (2560, 36), (4096, 36), (5120, 40), (5120, 64)), 1e6),
    Published("gpt-oss", "gpt_oss", (201088,), ((2880, 24), (2880, 36)), 1.5e5),
    Published("Phi-4", "phi3", (100352,), ((5120, 40),), 2.5e5),
    Published("OLMo 2", "olmo2", (100352,), ((2048, 16), (4096, 32), (5120, 40), (5120, 64)), 5e5),
    Published("Gemma 3", "gemma3_text", (262144, 262208),
        ((1152, 26), (2560, 34), (3840, 48), (5376, 62)), 1e6, unsaid=True),
)  # fmt: skip
"""Of whose bases none is below one."""
# Shared are those of R1 Distill Qwen, which is made of Qwen2.5 Math.
BASES = (
    Published("Qwen2.5 1.5B", "qwen2", (151936,), ((1536, 28),), 1e6, (32768,), (131072,)),
    Published("Qwen2.5 7B", "qwen2", (152064,), ((3584, 28),), 1e6, (32768,), (131072,)),
    Published("Qwen2.5 72B", "qwen2", (152064,), ((8192, 80),), 1e6, (32768, 131072)),
    Published("Code Llama", "llama", (32016,), ((4096, 32), (5120, 40)), 1e6, (16384,)),
    Published("Code Llama 34B", "llama", (32000,), ((8192, 48),), 1e6, (16384,)),
    Published("Mistral 7B v0.3", "mistral", (32768,), ((4096, 32),), 1e6, (32768,)),
    Published("Mixtral 8x7B", "mixtral", (32000,), ((4096, 32),), 1e6, (32768,), experts=8),
    Published("Mixtral 8x22B", "mixtral", (32000, 32768), ((6144, 56),), 1e6, (65536,), experts=8),
)  # fmt: skip
"""Whose bases are known for certain at their own lengths alone."""
LENGTHS = (
    Published("Llama 1 or 2", "llama", (32000,), ((4096, 32), (5120, 40), (6656, 60), (8192, 80)),
        lengths=(2048, 4096)),
    Published("Llama 3", "llama", (128256,), ((4096, 32), (8192, 80)), lengths=(8192, 131072)),
    Published("Mistral 7B", "mistral", (32000, 32768), ((4096, 32),), lengths=(32768,)),
    Published("Gemma 2", "gemma2", (256000,), ((2304, 26), (3584, 42), (4608, 46)),
        lengths=(8192,)),
)  # fmt: skip
"""Whose trained lengths are known."""
LLAMA_31_LENGTH = 131072
LLAMA_31_FACTORS = {
    (4096, 32): 8.0, (8192, 80): 8.0, (16384, 126): 8.0, (2048, 16): 32.0, (3072, 28): 32.0,
}  # fmt: skip
"""Of each shape of Llama 3.1, 3.2 and 3.3: the factor of its llama3 entry."""
