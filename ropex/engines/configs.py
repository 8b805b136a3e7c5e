"""Answers for the engines that read config.json, or an override of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ropex.config import numbers as formulas
from ropex.config.notations import written
from ropex.engines.answer import Export
from ropex.engines.choose import Choice, assess, choose, error, last_resort
from ropex.engines.encodings import Encoding, encodings
from ropex.engines.facts import EXLLAMAV2, EXLLAMAV3, READERS, TRANSFORMERS_SOURCE, Engine
from ropex.engines.wanted import Wanted

_ORIGINAL = "original_max_position_embeddings"
# Where vLLM and SGLang take a config that replaces that of the checkpoint, and their flag for the
# length; TensorRT-LLM has the latter alone.
_OVERRIDES = {"vllm": "--hf-overrides", "sglang": "--json-model-override-args"}
_LENGTH_FLAGS = {
    "vllm": "--max-model-len", "sglang": "--context-length", "tensorrt-llm": "--max_seq_len"
}  # fmt: skip


def for_transformers(wanted: Wanted, version: int) -> Export:
    """What transformers 4 or 5 needs: the config that `ropex patch` writes."""
    name, kind = f"transformers{version}", wanted.entry["rope_type"]
    if wanted.refusal:
        return Export.refused(name, wanted.refusal, TRANSFORMERS_SOURCE)
    misread = None if kind in formulas.KNOWN else f"does not know the `{kind}` type"
    if version == 4 and (misread := wanted.misread or misread):
        return Export.refused(name, f"transformers 4 {misread}", TRANSFORMERS_SOURCE)
    changed = _changed(wanted.config, wanted)
    if version == 5 and _says(wanted, changed):
        changed = None
    found = Export(
        name, "exact", 0.0, f"transformers {version} computes it", (), changed, None,
        TRANSFORMERS_SOURCE, as_written=changed is None,
    )  # fmt: skip
    if kind != "dynamic":
        return found
    grows = wanted.target_length > wanted.trained_length
    return replace(
        found,
        exactness="approximate",
        bound=error(wanted.inv_freq, wanted.short) if grows else 1.0,
        reason=f"transformers {version} keeps the base of the longest text that it has seen, and "
        "the keys that it has cached under an earlier one: right for a text that is read at once "
        "and first",
    )


def for_reader(name: str, wanted: Wanted) -> Export:
    """What an engine of `facts.READERS` needs: flags, or the config that it reads."""
    engine, override = READERS[name], _OVERRIDES.get(name)
    if refusal := _refusal(engine, wanted):
        return Export.refused(name, refusal, engine.source)
    choice = choose(engine, wanted)
    if isinstance(choice, str):
        return Export.refused(name, choice + last_resort(wanted), engine.source)
    config = _config(wanted, choice.encoding)
    if override is not None and _says(wanted, config):
        config = None
    flags = (flag, str(wanted.target_length)) if (flag := _LENGTH_FLAGS.get(name)) else ()
    if config is not None and override is not None:
        flags = (override, json.dumps(_override(wanted, choice.encoding)), *flags)
    reason = choice.reason + ("" if config else "; config.json says so already")
    return replace(_export(name, choice, reason, config, engine.source), flags=flags)


def for_exllama(wanted: Wanted) -> Export:
    """The config that exllamav2 and exllamav3 read."""
    name, source = "exllama", f"{EXLLAMAV3.source}; {EXLLAMAV2.source}"
    if refusal := _refusal(EXLLAMAV3, wanted):
        return Export.refused(name, refusal, source)
    for encoding in encodings(wanted):
        new, old = (assess(engine, encoding, wanted) for engine in (EXLLAMAV3, EXLLAMAV2))
        if not isinstance(new, str) and not isinstance(old, str) and _exact(new) and _exact(old):
            reason = f"exllamav2 and exllamav3 read {encoding.what}{_alpha(wanted, encoding)}"
            return _export(name, new, reason, _config(wanted, encoding, old_name=True), source)
    newest, oldest = choose(EXLLAMAV3, wanted), choose(EXLLAMAV2, wanted)
    if isinstance(newest, str):
        return Export.refused(name, newest + last_resort(wanted), source)
    judged = assess(EXLLAMAV2, newest.encoding, wanted)
    same = not isinstance(judged, str)
    about = oldest if isinstance(oldest, str) else f"exllamav2 wants {oldest.encoding.what}"
    reason = newest.reason + ("; so does exllamav2" if same else f"; {about}, not given here")
    config = _config(wanted, newest.encoding, old_name=same)
    return _export(name, newest, reason, config, source)


def _exact(choice: Choice) -> bool:
    return choice.exactness == "exact"


def _export(
    name: str, choice: Choice, reason: str, config: dict[str, Any] | None, source: str
) -> Export:
    return Export(
        name, choice.exactness, choice.bound, reason, (), config, None, source,
        as_written=config is None,
    )  # fmt: skip


def _refusal(engine: Engine, wanted: Wanted) -> str | None:
    if wanted.refusal:
        return wanted.refusal
    if wanted.several:
        return (
            f"{wanted.model_type} has a rotary embedding for each type of layer, and ropex has not "
            f"checked how {engine.title} reads them"
        )
    if wanted.scales_softmax:
        return f"ropex has not checked how {engine.title} scales the softmax of latent attention"
    return None


def _override(wanted: Wanted, encoding: Encoding) -> dict[str, Any]:
    """What replaces the entry of the checkpoint, whole, as vLLM does not merge the two."""
    keys = {"rope_parameters": encoding.entry, **_lengths(encoding)}
    return {wanted.part: keys} if wanted.part else keys


def _lengths(encoding: Encoding) -> dict[str, Any]:
    """The lengths at the root that belong to an entry."""
    keys = {"max_position_embeddings": encoding.length}
    if encoding.entry["rope_type"] in ("llama3", "longrope"):
        keys[_ORIGINAL] = encoding.entry[_ORIGINAL]
    return keys


def _config(wanted: Wanted, encoding: Encoding, *, old_name: bool = False) -> dict[str, Any] | None:
    """The keys that differ from config.json, in both notations."""
    keys = {**written(encoding.entry, wanted.model_type), **_lengths(encoding)}
    scaling = keys.get("rope_scaling")
    if old_name and scaling and scaling.get("rope_type") in ("linear", "longrope"):
        keys["rope_scaling"] = {"type": scaling["rope_type"], **scaling}
    return _changed(keys, wanted, by_name=old_name)


def _changed(
    keys: dict[str, Any], wanted: Wanted, *, by_name: bool = False
) -> dict[str, Any] | None:
    """Those of `keys` that config.json has otherwise; None if there are none."""
    raw = wanted.raw
    plain: Callable[[Any], Any] = (lambda value: value) if by_name else _plain
    changed = {key: value for key, value in keys.items() if plain(raw.get(key)) != plain(value)}
    if not changed:
        return None
    return {wanted.part: changed} if wanted.part else changed


def _plain(value: Any) -> Any:
    """An entry without its two ways to say the type; anything else as it is."""
    if not isinstance(value, dict):
        return value
    kind = value.get("rope_type", value.get("type"))
    return {**value, "rope_type": kind, "type": value.get("type", kind)}


def _says(wanted: Wanted, changed: dict[str, Any] | None) -> bool:
    """Whether config.json says it already to a reader of both notations, be it in one alone."""
    keys = set((changed or {}).get(wanted.part, changed or {}))
    old = {"rope_theta", "rope_scaling"}
    if wanted.raw.get("rope_parameters"):
        return not wanted.raw.keys() & old and keys <= old
    return keys <= {"rope_parameters"}


def _alpha(wanted: Wanted, encoding: Encoding) -> str:
    """The flag of exllamav2 that stands for a larger base."""
    new = float(encoding.entry["rope_theta"])
    if not wanted.base or new == wanted.base or encoding.entry["rope_type"] != "default":
        return ""
    alpha = (new / wanted.base) ** ((wanted.dim - 2) / wanted.dim)
    return f"; with the config as it is, exllamav2 takes --rope-alpha {alpha:.9g}"
