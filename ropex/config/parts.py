"""The parts of a config.json that describe language models, before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ropex.config.edits import Edit, Path, dotted

NOTATIONS = ("rope_scaling", "rope_parameters")
"""Where transformers 4 and 5 keep an entry."""

# Keys under which configs of several parts keep that of the language model.
_LANGUAGE = ("text_config", "llm_config", "language_config", "thinker_config")
_DEEPEST = 4


@dataclass(frozen=True)
class Part:
    """A config, or the part of one that describes a language model.

    Attributes:
        path: Keys that lead to it.
        raw: Its JSON.
        remote: Whether code of the checkpoint's own reads it.
        trained: Tokens that it was trained at, by a `ropex.json` beside it.
        target: Tokens that it will reach, by the same file.
    """

    path: Path
    raw: dict[str, Any]
    remote: bool = False
    trained: int | None = None
    target: int | None = None

    @property
    def model_type(self) -> str:
        """Of the family; empty if unsaid."""
        found = self.raw.get("model_type")
        return found if isinstance(found, str) else ""

    @property
    def latent(self) -> bool:
        """Whether attention is latent, as DeepSeek's, which reads `mscale_all_dim` twice."""
        return "kv_lora_rank" in self.raw

    def where(self, *keys: str) -> str:
        """The place of a key, for a person."""
        path = dotted((*self.path, *keys))
        return f"config.json: {path}" if path else "config.json"

    def set(self, *keys: str, to: Any) -> Edit:
        """The edit that sets a value."""
        return Edit("config.json", (*self.path, *keys), to)

    def remove(self, *keys: str) -> Edit:
        """The edit that takes a key away."""
        return Edit("config.json", (*self.path, *keys), remove=True)


def parts_of(whole: Part) -> Iterator[Part]:
    """A config, and the parts of it that describe a language model, the outer ones first."""
    waiting = [whole]
    while waiting:
        part = waiting.pop(0)
        yield part
        waiting += inner_parts(part)


def inner_parts(part: Part) -> Iterator[Part]:
    """The parts right inside one that describe a language model."""
    for key in _LANGUAGE:
        raw = part.raw.get(key)
        if isinstance(raw, dict) and len(part.path) < _DEEPEST:
            remote = part.remote or "auto_map" in raw
            yield replace(part, path=(*part.path, key), raw=raw, remote=remote)
