"""The answer: flags, a config or metadata for one engine, and how exact they are."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Exactness: TypeAlias = Literal["exact", "approximate", "not expressible"]
Verdict: TypeAlias = Literal["yes", "export", "near", "no"]
VERDICTS: dict[Verdict, str] = {
    "yes": "exact from what `ropex patch` writes",
    "export": "exact with what `ropex export` prints",
    "near": "approximate",
    "no": "`ropex export` says why",
}
"""What an answer comes to, in a word, and what the word means."""


@dataclass(frozen=True)
class Export:
    """What one engine needs, and how near it comes to what was planned.

    Attributes:
        engine: Which engine, by the name that `ropex export --for` takes.
        exactness: `exact` to the accuracy of float32; `approximate` within `bound`; or
            `not expressible`, and then nothing else is given.
        bound: The largest relative error of a frequency or of the factor of cos and sin, worked
            out in float64; 0 where it is exact, None where nothing can be said.
        reason: Why, and under which conditions.
        flags: Arguments for the engine's command line.
        config: Keys of config.json that have to be other than they are; None if it is read as
            planned already.
        metadata: Keys of a GGUF file; None for other engines.
        source: Where the statement on the engine comes from.
        tensors: Tensors of a GGUF file by name: a divisor for each pair.
        as_written: Whether the engine computes it, as well as it can, from the checkpoint as it is,
            flags for the length aside; llama.cpp from the file that its converter makes.
    """

    engine: str
    exactness: Exactness
    bound: float | None
    reason: str
    flags: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    source: str = ""
    tensors: dict[str, list[float]] | None = None
    as_written: bool = False

    @classmethod
    def refused(cls, engine: str, reason: str, source: str) -> Export:
        """The answer where nothing can be done."""
        return cls(engine, "not expressible", None, reason, source=source)

    @property
    def verdict(self) -> Verdict:
        """How the engine reads the checkpoint, in a word."""
        if self.exactness == "exact":
            return "yes" if self.as_written else "export"
        return "near" if self.exactness == "approximate" else "no"

    @property
    def flag_text(self) -> str:
        """The flags, quoted for a shell."""
        return shlex.join(self.flags)
