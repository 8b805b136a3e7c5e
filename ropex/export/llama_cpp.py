"""Answers for llama.cpp: flags, metadata of a GGUF file, and tensors of divisors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ropex.export import formulas
from ropex.export.choose import compare
from ropex.export.encodings import base_of, constant
from ropex.export.engines import Reading
from ropex.export.value import Export
from ropex.export.wanted import Wanted

SOURCE = "llama.cpp's converter, loader and graphs, read"
FREQS = "rope_freqs.weight"
LISTS = ("rope_factors_long.weight", "rope_factors_short.weight")
# Architectures whose graph hands `rope_freqs.weight` to the rotation, and those with two lists.
READS_FREQS = ("llama", "granite", "exaone", "arcee")
READS_LISTS = ("phi3",)
# What the converter calls a `model_type`.
ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "granite": "granite",
    "exaone": "exaone", "arcee": "arcee", "phi3": "phi3", "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2", "starcoder2": "starcoder2",
    "cohere": "command-r", "cohere2": "cohere2", "gpt_neox": "gptneox", "stablelm": "stablelm",
    "falcon": "falcon", "phi": "phi2", "glm4": "glm4", "internlm2": "internlm2",
    "minicpm": "minicpm", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Form:
    """One way to say a rotary embedding to llama.cpp.

    Attributes:
        what: In words.
        reading: What llama.cpp computes of it.
        flags: Its flags, but for the length.
        keys: Metadata after the architecture's name, but for the length.
        tensors: Divisors by the name of the tensor.
        attention: `rope.scaling.attn_factor`, the factor of cos and sin that is left to say.
    """

    what: str
    reading: Reading
    flags: tuple[str, ...]
    keys: dict[str, Any]
    tensors: dict[str, list[float]] = field(default_factory=dict)
    attention: float = 1.0


def for_llama_cpp(wanted: Wanted, arch: str | None = None) -> Export:
    """What llama.cpp needs.

    Args:
        wanted: The rotary embedding.
        arch: The architecture that a GGUF file names; by default what the converter calls it.
    """
    arch = arch or ARCHITECTURES.get(wanted.model_type)
    if refusal := _refusal(wanted):
        return Export.refused("llama.cpp", refusal, SOURCE)
    for form in _forms(wanted, arch):
        verdict = compare(form.reading, wanted)
        if not isinstance(verdict, str) and (arch or not (form.tensors or form.attention != 1)):
            return _answer(wanted, arch, form, *verdict[1:])
    return Export.refused(
        "llama.cpp",
        f"these frequencies need a tensor of divisors ({FREQS}), which the graph of "
        f"{arch or wanted.model_type} is not known to read; a larger base (ntk, theta), linear and "
        "yarn need none",
        SOURCE,
    )


def _refusal(wanted: Wanted) -> str | None:
    if wanted.refusal:
        return wanted.refusal
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
    if (factor := constant(wanted.divisors)) is not None and factor > 1:
        keys = _base(wanted) | {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        flags = ("--rope-scaling", "linear", "--rope-scale", repr(factor))
        yield Form("linear scaling", reading, flags, keys, {}, scale)
    if wanted.entry["rope_type"] == "yarn":
        yield _yarn(wanted)
    yield from _tensors(wanted, arch)


def _yarn(wanted: Wanted) -> Form:
    entry = {**wanted.entry, "truncate": True}
    factor, before = float(entry["factor"]), formulas.original(entry, wanted.trained_length)
    table = formulas.frequencies(entry, wanted.dim, before, wanted.target_length)
    flags = ["--rope-scaling", "yarn", "--rope-scale", repr(factor), "--yarn-orig-ctx", str(before)]
    keys = _base(wanted) | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": before,
    }
    for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if (value := float(entry.get(name) or usual)) != usual:
            flags += [f"--yarn-{name.replace('_', '-')}", repr(value)]
            keys[f"rope.scaling.yarn_{name}"] = value
    left = wanted.attention_scale / formulas.usual(entry)
    left = 1.0 if abs(left - 1) < 1e-9 else left
    reading = Reading(table, table, formulas.usual(entry) * left)
    return Form("YaRN", reading, tuple(flags), keys, {}, left)


def _tensors(wanted: Wanted, arch: str | None) -> Iterator[Form]:
    table, divisors = wanted.inv_freq, wanted.divisors.tolist()
    reading, keys = Reading(table, table, wanted.attention_scale), _base(wanted)
    if arch in READS_FREQS:
        keys["rope.scaling.type"] = "none"
        tensors = {FREQS: divisors}
        yield Form(FREQS, reading, (), keys, tensors, wanted.attention_scale)
    if arch in READS_LISTS:
        # One list for the whole context: the short one if it fits into the length before scaling.
        keys["rope.scaling.type"] = "longrope"
        keys["rope.scaling.original_context_length"] = wanted.trained_length
        short = (wanted.standard / wanted.short).clamp(max=1e30).tolist()
        tensors = dict(zip(LISTS, (divisors, short), strict=True))
        yield Form(" and ".join(LISTS), reading, (), keys, tensors, wanted.attention_scale)


def _base(wanted: Wanted) -> dict[str, Any]:
    return {"rope.freq_base": float(wanted.entry["rope_theta"])}


def _answer(wanted: Wanted, arch: str | None, form: Form, bound: float, note: str) -> Export:
    length, attention = wanted.target_length, form.attention
    keys: dict[str, Any] = {"context_length": length, **form.keys}
    overrides = [f"context_length=int:{length}"] if length > wanted.trained_length else []
    if attention != 1:
        keys["rope.scaling.attn_factor"] = attention
        overrides.append(f"rope.scaling.attn_factor=float:{attention!r}")
    flags = ("-c", str(length), *form.flags)
    about = f"llama.cpp computes it from {form.what}{note}"
    if form.tensors:  # the file has to be written anyhow, and says the rest
        about += "; add it with ropex export DIR --for llama.cpp --gguf IN.gguf -o OUT.gguf"
    elif arch:
        flags += tuple(part for text in overrides for part in ("--override-kv", f"{arch}.{text}"))
    metadata = {f"{arch}.{key}": value for key, value in keys.items()} if arch else None
    return Export(
        "llama.cpp", "approximate" if bound else "exact", bound, about, flags, None, metadata,
        SOURCE, form.tensors or None,
    )  # fmt: skip
