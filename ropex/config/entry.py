"""One rope entry of a config, in any notation, and what it means.

transformers 5 stores an entry as `rope_parameters`, one dict with `rope_type`, `rope_theta` and the
parameters of the type, or one such dict for each layer type; transformers 4 as `rope_theta` and
`rope_scaling`. Some families have names of their own (`ropex.config.families`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ropex.config.edits import Edit, Path
from ropex.config.families import BY_LAYER, NAMES_IN_4, SHARES, usual_share
from ropex.config.notations import is_nested, layers_in, version_5
from ropex.config.parts import NOTATIONS, Part
from ropex.config.values import MAX, ORIGINAL, allowed, number, positive, range_of, spelled
from ropex.errors import UnsupportedModel

USUAL_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}
"""Turns at the ends of YaRN's ramp that every engine takes where a config says none."""

_NAMES = {"su": "longrope", "mrope": "default"}  # what some files call two of the types
_CHECKED = ("rope_theta", "factor", "partial_rotary_factor")


@dataclass(frozen=True)
class Entry:
    """One rope entry, as it is written and as numbers.

    A value that cannot be meant as a number is None here, as if it were absent.

    Attributes:
        part: The config, or the part of one, where it stands.
        path: Keys that lead to it from there.
        raw: Its JSON.
    """

    part: Part
    path: Path
    raw: dict[str, Any]

    @classmethod
    def alone(cls, raw: dict[str, Any], longest: int | None = None) -> Entry:
        """An entry of a config that says nothing else but `max_position_embeddings`."""
        return cls(Part((), {MAX: longest}), (), raw)

    @property
    def kind(self) -> str:
        """Its rope type, as transformers calls it; empty if it is not a string."""
        found = self.raw.get("rope_type", self.raw.get("type", "default"))
        return _NAMES.get(found, found) if isinstance(found, str) else ""

    @property
    def two_types(self) -> bool:
        """Whether its two keys for the type contradict each other."""
        said = [self.raw[key] for key in ("type", "rope_type") if key in self.raw]
        return len({_NAMES.get(each, each) if isinstance(each, str) else None for each in said}) > 1

    @property
    def layer_type(self) -> str:
        """The layers that it is for; empty where it is for all."""
        return self.path[1] if len(self.path) > 1 else ""

    @property
    def stated_base(self) -> Any:
        """`rope_theta`, under whatever name the family has for it; None if it is not said."""
        family = self.part.model_type
        name = NAMES_IN_4.get(family, {}).get("rope_theta", "rope_theta")
        if self.layer_type == "sliding_attention" and family in BY_LAYER:
            name = BY_LAYER[family].local_key or name
        said = self.raw.get("rope_theta")
        return self.part.raw.get(name) if said is None else said

    @property
    def base(self) -> float | None:
        """The base as a number; YAML reads 1e6 as a string."""
        value = self.stated_base
        found = number(value) or spelled(value)
        return found if found and found > 0 else None

    @property
    def share(self) -> float:
        """Rotated share of a head; that of the family where none is said."""
        raws = (self.raw, self.part.raw)
        said = (positive(raw, key) for raw in raws for key in SHARES)
        return next(filter(None, said), usual_share(self.part.model_type))

    @property
    def pairs(self) -> int | None:
        """Rotated pairs of a head by the sizes in the config; None if it does not say them."""
        raw = self.part.raw
        if latent := positive(raw, "qk_rope_head_dim"):
            return int(latent) // 2
        head = positive(raw, "head_dim")
        if head is None and not self.part.remote:
            hidden, heads = positive(raw, "hidden_size"), positive(raw, "num_attention_heads")
            head = hidden // heads if hidden and heads and heads >= 1 else None
        return None if head is None else int(head * self.share) // 2

    @property
    def factor(self) -> float | None:
        """The factor that it states."""
        return positive(self.raw, "factor")

    @property
    def stretch(self) -> float | None:
        """The factor; for the types that go by two lengths, else what these say."""
        if self.factor or self.kind not in ("yarn", "longrope"):
            return self.factor
        return self.longest / self.original if self.longest and self.original else None

    @property
    def original(self) -> float | None:
        """The trained length that it states, or else its part."""
        return positive(self.raw, ORIGINAL) or positive(self.part.raw, ORIGINAL)

    @property
    def longest(self) -> float | None:
        """`max_position_embeddings`."""
        return positive(self.part.raw, MAX)

    @property
    def betas(self) -> tuple[float, float]:
        """Turns at the fast and the slow end of YaRN's ramp."""
        fast, slow = (positive(self.raw, key) or usual for key, usual in USUAL_BETAS.items())
        return fast, slow

    @property
    def truncate(self) -> bool:
        """Whether YaRN's ramp is rounded to whole pairs; null is false to transformers."""
        return bool(self.raw.get("truncate", True))

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


def entries_of(part: Part) -> tuple[Entry, ...]:
    """Every rope entry, in both notations, one for each layer type where they differ."""
    return tuple(_entries(part))


def _entries(part: Part) -> Iterator[Entry]:
    for key in NOTATIONS:
        raw = part.raw.get(key)
        if not isinstance(raw, dict):
            continue
        layers = layers_in(raw, part.model_type)
        if not is_nested(layers):
            yield Entry(part, (key,), raw)
            continue
        for layer_type, entry in layers.items():
            if isinstance(entry, dict):
                yield Entry(part, (key, layer_type), entry)


def read_entry(config: Any, layer_type: str = "") -> dict[str, Any]:
    """The rope entry of a config of transformers 4 or 5, as a new dict.

    Args:
        config: The object that a model has.
        layer_type: Of which layers, in a config with an entry for each type.

    Raises:
        UnsupportedModel: The config has one entry per layer type, and none was named.
        ValueError: The config does not say its base, or a number in it is out of range.
    """
    entry = read_entries(config)
    if layer_type:
        entry = dict(entry[layer_type])
    elif is_nested(entry):
        raise UnsupportedModel(
            f"{config.model_type} has one rotary embedding per layer type ({', '.join(entry)}), "
            "and a rotary module of it has one for all layers"
        )
    entry.setdefault("rope_type", entry.get("type", "default"))
    if not entry.get("rope_theta"):
        raise ValueError(f"the config of {config.model_type} does not say its rope_theta; add it")
    for key in _CHECKED:
        value = entry.get(key, getattr(config, key, None))
        if value is not None and not allowed(key, value):
            raise ValueError(
                f"the config of {config.model_type} says {key} {value!r}; "
                f"it must be a {range_of(key)}"
            )
    return entry


def read_entries(config: Any) -> dict[str, Any]:
    """The rope entry of a config, or the dict of one for each layer type, as it stands there."""
    if version_5() and isinstance(getattr(config, "rope_parameters", None), dict):
        return dict(layers_in(config.rope_parameters, config.model_type))
    entry = dict(getattr(config, "rope_scaling", None) or {})
    entry.setdefault("rope_type", entry.get("type", "default"))
    return {**entry, "rope_theta": getattr(config, "rope_theta", None)}


def completed_entry(config: Any, layer_type: str = "") -> dict[str, Any]:
    """The entry with the length before scaling and the factor, wherever transformers finds them."""
    entry = read_entry(config, layer_type)
    entry.pop("type", None)
    if entry["rope_type"] in ("yarn", "llama3", "longrope"):
        entry[ORIGINAL] = _before(config, entry) or config.max_position_embeddings
        stretch = Entry.alone(entry, config.max_position_embeddings).stretch
        if entry["rope_type"] == "yarn" and entry.get("factor") is None and stretch:
            entry["factor"] = stretch
    return entry


def _before(config: Any, entry: dict[str, Any]) -> Any:
    """The stated length before scaling, where the installed transformers looks for it.

    In 5, that at the root overrules the one entry of a config. 4 reads it for `longrope` alone.
    """
    inner, root = entry.get(ORIGINAL), getattr(config, ORIGINAL, None)
    if version_5():
        return inner or root if is_nested(read_entries(config)) else root or inner
    return root if entry["rope_type"] == "longrope" else inner


def reach(config: Any, entry: dict[str, Any]) -> int | None:
    """Tokens that a model is made for by its config, its own scaling included; None if unsaid.

    `max_position_embeddings` stays at the length before scaling in the `linear` type, and in many
    files of the `yarn` and `longrope` types, as model cards and engines read them.
    """
    length: int | None = getattr(config, MAX, None)
    if length is None:
        return None
    factor = float(entry.get("factor") or 1)
    if entry["rope_type"] == "linear":
        return round(length * factor)
    if entry["rope_type"] in ("yarn", "longrope"):
        return max(length, round((entry.get(ORIGINAL) or length) * factor))
    return length


def switch_of(config: Any, entry: dict[str, Any]) -> int:
    """Tokens up to which a model with a `longrope` entry takes its short list."""
    return int(_before(config, entry) or config.max_position_embeddings)


def scaling_of(entry: dict[str, Any]) -> str | None:
    """The type and factor of a model's own scaling, in words.

    `llama3` is None as well: Llama 3.1 was trained with it at its full length.
    """
    kind, factor = entry["rope_type"], entry.get("factor")
    if kind in ("default", "llama3") or (kind == "proportional" and not factor):
        return None
    return f"{kind}, factor {factor:g}" if factor else str(kind)
