"""The places in a config that describe rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from ropex.config.notations import is_nested
from ropex.doctor.findings import Edit, Path, Problem, dotted
from ropex.doctor.layer_types import by_layer
from ropex.doctor.values import MAX, ORIGINAL, positive

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

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
        trained: Tokens that it was trained at by a `ropex.json` beside it.
        target: Tokens that it is to reach by the same.
    """

    path: Path
    raw: dict[str, Any]
    remote: bool
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

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every rope entry, in both notations, one for each layer type where they differ."""
        return tuple(self._entries())

    def _entries(self) -> Iterator[Entry]:
        for key in NOTATIONS:
            raw = self.raw.get(key)
            if not isinstance(raw, dict):
                continue
            typed = {"rope_type", "type"} & raw.keys() and not by_layer(self.model_type)
            if typed or not is_nested(raw):
                yield Entry(self, (key,), raw)
                continue
            for layer_type, entry in raw.items():
                if isinstance(entry, dict):
                    yield Entry(self, (key, layer_type), entry)

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


@dataclass(frozen=True)
class Entry:
    """One rope entry.

    Attributes:
        part: Where it stands.
        path: Keys that lead to it from there.
        raw: Its JSON.
    """

    part: Part
    path: Path
    raw: dict[str, Any]

    @property
    def kind(self) -> str:
        """Its rope type, as transformers calls it; empty if that is no text."""
        found = self.raw.get("rope_type", self.raw.get("type", "default"))
        if not isinstance(found, str):
            return ""
        return "longrope" if found == "su" else found

    @property
    def factor(self) -> float | None:
        """A factor above 0."""
        return positive(self.raw, "factor")

    @property
    def original(self) -> float | None:
        """The trained length that it states, or else its part."""
        return positive(self.raw, ORIGINAL) or positive(self.part.raw, ORIGINAL)

    @property
    def longest(self) -> float | None:
        """`max_position_embeddings`."""
        return positive(self.part.raw, MAX)

    @property
    def scaled(self) -> bool:
        """Whether it changes frequencies at all."""
        if self.kind == "longrope":
            return True
        return self.kind in ("linear", "dynamic", "yarn", "llama3") and (self.factor or 1) > 1

    @property
    def where(self) -> str:
        """Its place, for a person."""
        return self.part.where(*self.path)

    def set(self, key: str, to: Any) -> Edit:
        """The edit that sets one of its values."""
        return self.part.set(*self.path, key, to=to)

    def remove(self, key: str) -> Edit:
        """The edit that takes one of its keys away."""
        return self.part.remove(*self.path, key)


def parts(checkpoint: Checkpoint) -> Iterator[Part]:
    """The config, and the parts of it that describe a language model."""
    config = checkpoint.documents.get("config.json")
    if config is None:
        return
    waiting = [Part((), config, "auto_map" in config, checkpoint.trained, checkpoint.target)]
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


def on_parts(
    check: Callable[[Part], Iterator[Problem]],
) -> Callable[[Checkpoint], Iterator[Problem]]:
    """The check of every part, from the check of one."""

    @wraps(check)
    def all_parts(checkpoint: Checkpoint) -> Iterator[Problem]:
        for part in parts(checkpoint):
            yield from check(part)

    return all_parts


def on_entries(
    check: Callable[[Entry], Iterator[Problem]],
) -> Callable[[Checkpoint], Iterator[Problem]]:
    """The check of every entry, from the check of one."""

    @wraps(check)
    def all_entries(checkpoint: Checkpoint) -> Iterator[Problem]:
        for part in parts(checkpoint):
            for entry in part.entries:
                yield from check(entry)

    return all_entries
