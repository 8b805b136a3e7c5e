"""Answers for llama.cpp: flags, metadata of a GGUF file, and tensors of divisors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ropex.config import numbers as formulas
from ropex.config.entry import USUAL_BETAS
from ropex.engines.answer import Export
from ropex.engines.choose import compare
from ropex.engines.encodings import base_of, constant
from ropex.engines.facts import (
    LLAMA_CPP_ARCHITECTURES,
    LLAMA_CPP_FREQS,
    LLAMA_CPP_LISTS,
    LLAMA_CPP_RAMP,
    LLAMA_CPP_SLIDING,
    LLAMA_CPP_SOURCE,
    own_betas,
)
from ropex.engines.readers import Reading, list_scale
from ropex.engines.wanted import Wanted

FREQS = "rope_freqs.weight"
LISTS = ("rope_factors_long.weight", "rope_factors_short.weight")
_KINDS = {int: "int", float: "float", str: "str"}  # what --override-kv calls them


@dataclass(frozen=True, eq=False)
class Form:
    """One way to say a rotary embedding to llama.cpp.

    Attributes:
        what: In words.
        reading: What llama.cpp computes of it.
        flags: Its flags, but for the length.
        keys: The same as metadata after the architecture's name, but for the length.
        tensors: Divisors by the name of the tensor.
        attention: `rope.scaling.attn_factor`, the factor of cos and sin that is left to say.
        unsaid: Flags for what no key says that llama.cpp reads for the architecture.
    """

    what: str
    reading: Reading
    flags: tuple[str, ...]
    keys: dict[str, Any]
    tensors: dict[str, list[float]] = field(default_factory=dict)
    attention: float = 1.0
    unsaid: tuple[str, ...] = ()


def for_llama_cpp(wanted: Wanted, arch: str | None = None, *, in_file: bool = False) -> Export:
    """What llama.cpp needs.

    Args:
        wanted: The rotary embedding.
        arch: The architecture that a GGUF file names; by default what the converter calls it.
        in_file: Whether a GGUF file has to say it, without flags.
    """
    arch = arch or LLAMA_CPP_ARCHITECTURES.get(wanted.model_type)
    if refusal := _refusal(wanted, arch):
        return Export.refused("llama.cpp", refusal, LLAMA_CPP_SOURCE)
    found: list[tuple[float, str, Form]] = []
    for form in _forms(wanted, arch):
        verdict = compare(form.reading, wanted)
        in_vain = form.unsaid if in_file else arch is None and (form.tensors or form.attention != 1)
        if not (isinstance(verdict, str) or in_vain):
            found.append((*verdict[1:], form))
    if found:  # the first of the nearest, which is the simplest
        bound, note, form = min(found, key=lambda each: each[0])
        converted = _converted(wanted, arch)
        same = None if converted is None else compare(converted, wanted)
        as_written = isinstance(same, tuple) and same[1] <= bound
        return replace(_answer(wanted, arch, bound, note, form), as_written=as_written)
    return Export.refused("llama.cpp", _lacking(wanted, arch, in_file), LLAMA_CPP_SOURCE)


def _converted(wanted: Wanted, arch: str | None) -> Reading | None:
    """What llama.cpp computes of the file that its converter makes of the patched checkpoint.

    None if that leaves something out.
    """
    entry, kind = wanted.entry, wanted.entry["rope_type"]
    table, scale = wanted.inv_freq, 1.0
    if kind == "yarn":
        form = _yarn(wanted, _ramp(wanted) if arch in LLAMA_CPP_RAMP else {}, {})
        table, scale = form.reading.inv_freq, formulas.usual(entry)
    elif kind == "longrope" and arch in LLAMA_CPP_LISTS:
        scale = list_scale(entry, int(wanted.config["max_position_embeddings"]))
    elif not (
        kind == "default"
        or (kind == "linear" and not wanted.latent)
        or (kind == "llama3" and arch in LLAMA_CPP_FREQS and arch != "minicpm")
    ):
        return None
    return Reading(table, table, scale)


def _lacking(wanted: Wanted, arch: str | None, in_file: bool) -> str:
    """Why nothing says it."""
    name = arch or wanted.model_type
    by_flags = for_llama_cpp(wanted, arch) if in_file else None
    if by_flags and by_flags.exactness != "not expressible":
        return (
            f"llama.cpp reads the ramp of YaRN from no key for {name}; serve the file as it is, "
            f"with {by_flags.flag_text}"
        )
    if wanted.latent and _linear(wanted):
        return (
            "llama.cpp scales the softmax of latent attention along with linear scaling, which no "
            "key or flag undoes; a larger base (ntk, theta) is exact"
        )
    return (
        f"these frequencies need a tensor of divisors ({FREQS}), which the graph of {name} is not "
        "known to read; a larger base (ntk, theta), linear and yarn need none"
    )


def _refusal(wanted: Wanted, arch: str | None) -> str | None:
    if wanted.refusal:
        return wanted.refusal
    if arch is None and "sliding_attention" in (wanted.config.get("layer_types") or ()):
        return (
            f"ropex has not checked how llama.cpp turns the sliding layers of {wanted.model_type}, "
            "which flags do not reach in some families"
        )
    if wanted.several:
        return (
            f"{wanted.model_type} has a rotary embedding for each type of layer, and llama.cpp's "
            "flags and metadata have one"
        )
    if wanted.scales_softmax:
        return "ropex has not checked how llama.cpp scales the softmax of latent attention"
    if wanted.endless:
        return "llama.cpp has one base for all texts; give a length, as in dynamic:length=32k"
    return None


def _forms(wanted: Wanted, arch: str | None) -> Iterator[Form]:
    """The forms that say the frequencies at the target length, simplest first."""
    scale, table = wanted.attention_scale, wanted.inv_freq
    reading = Reading(table, table, scale)
    if (base := base_of(wanted)) is not None:
        keys = {"rope.freq_base": base, "rope.scaling.type": "none"}
        yield Form("the base", reading, ("--rope-freq-base", repr(base)), keys, {}, scale)
    # Beside linear scaling, the graphs of latent attention scale the softmax as YaRN does.
    if (factor := _linear(wanted)) and not wanted.latent:
        keys = _base(wanted) | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        flags = ("--rope-scaling", "linear", "--rope-scale", repr(factor))
        yield Form("linear scaling", reading, flags, keys, {}, scale)
    ramp = _ramp(wanted)
    if wanted.entry["rope_type"] == "yarn":
        yield _yarn(wanted, ramp if arch in LLAMA_CPP_RAMP else {}, {})
    yield from _tensors(wanted, arch)
    if ramp and arch not in LLAMA_CPP_RAMP:
        yield _yarn(wanted, {}, ramp)


def _linear(wanted: Wanted) -> float | None:
    """The factor that divides all frequencies; None if there is none."""
    factor = constant(wanted.divisors)
    return factor if factor is not None and factor > 1 else None


def _ramp(wanted: Wanted) -> dict[str, float]:
    """The bounds of YaRN's ramp that are not the usual ones."""
    return own_betas(wanted.entry) if wanted.entry["rope_type"] == "yarn" else {}


def _yarn(wanted: Wanted, in_keys: dict[str, float], in_flags: dict[str, float]) -> Form:
    """YaRN with the usual ramp but for the bounds that are given; they are always rounded."""
    entry = {**wanted.entry, **USUAL_BETAS, **in_keys, **in_flags, "truncate": True}
    factor, before = float(entry["factor"]), formulas.original(entry, wanted.trained_length)
    table = formulas.frequencies(entry, wanted.dim, before, wanted.target_length)
    scaling = "--rope-scaling", "yarn", "--rope-scale", repr(factor), "--yarn-orig-ctx", str(before)
    keys = _base(wanted) | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": before,
        **{f"rope.scaling.yarn_{name}": value for name, value in in_keys.items()},
    }
    left = wanted.attention_scale / formulas.usual(entry)
    left = 1.0 if abs(left - 1) < 1e-9 else left
    reading = Reading(table, table, formulas.usual(entry) * left)
    flags, unsaid = (*scaling, *_betas(in_keys)), _betas(in_flags)
    return Form("YaRN", reading, flags, keys, attention=left, unsaid=unsaid)


def _betas(ramp: dict[str, float]) -> tuple[str, ...]:
    pairs = ((f"--yarn-{name.replace('_', '-')}", repr(value)) for name, value in ramp.items())
    return tuple(word for pair in pairs for word in pair)


def _tensors(wanted: Wanted, arch: str | None) -> Iterator[Form]:
    table, divisors = wanted.inv_freq, wanted.divisors.tolist()
    reading, keys = Reading(table, table, wanted.attention_scale), _base(wanted)
    if arch in LLAMA_CPP_FREQS:
        keys["rope.scaling.type"] = "none"
        tensors = {FREQS: divisors}
        yield Form(FREQS, reading, (), keys, tensors, wanted.attention_scale)
    if arch in LLAMA_CPP_LISTS:
        # One list for the whole context: the short one if it fits into the length before scaling.
        keys["rope.scaling.type"] = "longrope"
        keys["rope.scaling.original_context_length"] = wanted.trained_length
        short = (wanted.standard / wanted.short).clamp(max=1e30).tolist()
        tensors = dict(zip(LISTS, (divisors, short), strict=True))
        yield Form(" and ".join(LISTS), reading, (), keys, tensors, wanted.attention_scale)


def _base(wanted: Wanted) -> dict[str, Any]:
    return {"rope.freq_base": float(wanted.entry["rope_theta"])}


def _answer(wanted: Wanted, arch: str | None, bound: float, note: str, form: Form) -> Export:
    keys: dict[str, Any] = {"context_length": wanted.target_length, **form.keys}
    if form.attention != 1:
        keys["rope.scaling.attn_factor"] = form.attention
    about = f"llama.cpp computes it from {form.what}{note}"
    if form.tensors:  # the file has to be written anyhow, and says the rest
        about += "; add it with ropex export DIR --for llama.cpp --gguf IN.gguf -o OUT.gguf"
    flags = ("-c", str(wanted.target_length), *_flags(wanted, arch, form, keys))
    metadata = {f"{arch}.{key}": value for key, value in keys.items()}
    return Export(
        "llama.cpp", "approximate" if bound else "exact", bound, about, flags, None,
        metadata if arch and not form.unsaid else None, LLAMA_CPP_SOURCE, form.tensors or None,
    )  # fmt: skip


def _flags(wanted: Wanted, arch: str | None, form: Form, keys: dict[str, Any]) -> Iterator[str]:
    """What says the form for a file as it was converted: flags, and keys that have none."""
    if form.tensors:
        yield from form.flags
        return
    whole = arch in LLAMA_CPP_SLIDING
    without_flag = {"rope.scaling.attn_factor"}
    if wanted.target_length > wanted.trained_length:
        without_flag.add("context_length")
    yield from form.unsaid if whole else form.flags + form.unsaid
    for key, value in keys.items() if arch else ():
        if key in without_flag or (whole and key.startswith("rope.")):
            yield from ("--override-kv", f"{arch}.{key}={_KINDS[type(value)]}:{value}")
