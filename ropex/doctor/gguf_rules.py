"""Rules on GGUF files: what llama.cpp reads from the metadata, and what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ropex.checkpoints.gguf import Gguf
from ropex.config.edits import shown
from ropex.config.entry import USUAL_BETAS
from ropex.config.values import number, positive
from ropex.doctor.findings import Problem, Rule, on_each
from ropex.doctor.published import FAMILIES
from ropex.engines.facts import LLAMA_CPP_FREQS, LLAMA_CPP_NO_FREQS, LLAMA_CPP_RAMP

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

_FREQS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# What llama.cpp takes for keys that its loaders do not read.
_RAMP = {f"yarn_{name}": value for name, value in (USUAL_BETAS | {"ext_factor": 1.0}).items()}
_NUMBERS = (
    "context_length", "rope.freq_base", "rope.dimension_count", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor",
)  # fmt: skip
_TYPES = ("none", "linear", "yarn", "longrope")
_EDIT = "edit the metadata (gguf_set_metadata.py), or give llama.cpp --override-kv"


@on_each
def _on_gguf(checkpoint: Checkpoint) -> tuple[Gguf, ...]:
    """The check of a GGUF file, where there is one."""
    return () if checkpoint.gguf is None else (checkpoint.gguf,)


@_on_gguf
def _bad_metadata(file: Gguf) -> Iterator[Problem]:
    """The metadata has an architecture, and numbers where numbers must be."""
    if not file.arch:
        yield Problem(
            file.name,
            "general.architecture is missing, so no key can be read",
            advice="convert the model again",
        )
    for key in _NUMBERS:
        value = file.get(key)
        found = number(value)
        if value is not None and (found is None or found < 0):  # 0 is unset, for the factor
            yield Problem(
                f"{file.name}: {file.arch}.{key}",
                f"the value is {shown(value)}; it must be a finite number above 0",
                advice="convert the model again",
            )
    kind = file.get("rope.scaling.type")
    if kind is not None and kind not in _TYPES:
        yield Problem(
            f"{file.name}: {file.arch}.rope.scaling.type",
            f"the type is {shown(kind)}; llama.cpp knows {', '.join(_TYPES)}",
            advice=_EDIT,
        )


@_on_gguf
def _family_base(file: Gguf) -> Iterator[Problem]:
    """A well-known model has a base that it was published with."""
    sizes = [_size(file, key) for key in ("vocab_size", "embedding_length", "block_count")]
    family = next((each for each in FAMILIES if each.has(file.arch, *sizes)), None)
    base = _size(file, "rope.freq_base")
    if family is not None and (base or 1e4) < family.base:
        said = f"is {base:g}" if base else "is missing, so it is 10000"
        yield Problem(
            f"{file.name}: {file.arch}.rope.freq_base",
            f"the base {said}; {family.name} has {family.base:g} or more",
            advice=f"convert the model again, or give llama.cpp --rope-freq-base {family.base:.0f}",
        )


@_on_gguf
def _no_original(file: Gguf) -> Iterator[Problem]:
    """A YaRN or longrope entry says the trained length."""
    kind = file.get("rope.scaling.type")
    if kind in ("yarn", "longrope") and not _size(file, "rope.scaling.original_context_length"):
        yield Problem(
            file.name,
            f"rope.scaling.original_context_length is missing: llama.cpp takes context_length "
            f"({shown(file.get('context_length'))}) for the trained length",
            advice=f"give llama.cpp --yarn-orig-ctx with the trained length; or {_EDIT}",
        )


@_on_gguf
def _capped(file: Gguf) -> Iterator[Problem]:
    """The context length is the scaled one, not the trained one."""
    kind, factor = file.get("rope.scaling.type"), _size(file, "rope.scaling.factor")
    length, original = (
        _size(file, key) for key in ("context_length", "rope.scaling.original_context_length")
    )
    if kind not in ("linear", "yarn") or not factor or factor <= 1 or not length:
        return
    if original and length <= original:
        yield Problem(
            f"{file.name}: {file.arch}.context_length",
            f"it is {length:g}, the trained length, and the server stops there; the scaling "
            f"reaches {original * factor:g}",
            advice=f"give llama.cpp --override-kv {file.arch}.context_length=int:"
            f"{int(original * factor)}",
        )


@_on_gguf
def _attention_key(file: Gguf) -> Iterator[Problem]:
    """YaRN's attention factor is under the key that llama.cpp keeps."""
    value = number(file.get("rope.scaling.yarn_attn_factor"))
    if value is not None and value != 1 and file.get("rope.scaling.attn_factor") is None:
        yield Problem(
            f"{file.name}: {file.arch}.rope.scaling.yarn_attn_factor",
            f"the value {value:g} is overwritten by llama.cpp with the usual one",
            advice=f"{_EDIT}: {file.arch}.rope.scaling.attn_factor=float:{value:g}",
        )


@_on_gguf
def _ignored_ramp(file: Gguf) -> Iterator[Problem]:
    """YaRN's ramp is in keys that the loader of the architecture reads."""
    if file.get("rope.scaling.type") != "yarn" or file.arch in LLAMA_CPP_RAMP:
        return
    tensor = f", or write its factors as {_FREQS} (ropex export --gguf)"
    for key, usual in _RAMP.items():
        value = number(file.get(f"rope.scaling.{key}"))
        if value is not None and value != usual:
            yield Problem(
                f"{file.name}: {file.arch}.rope.scaling.{key}",
                f"llama.cpp does not read this key for {file.arch} and takes {usual:g}, not "
                f"{value:g}",
                advice=f"give llama.cpp --{key.replace('_', '-')} {value:g}"
                + (tensor if file.arch in LLAMA_CPP_FREQS else ""),
            )


@_on_gguf
def _tensor_shape(file: Gguf) -> Iterator[Problem]:
    """Tensors of rotary factors are float32 and have one number for each pair."""
    dim = _size(file, "rope.dimension_count")
    if dim is None:
        width, heads = _size(file, "embedding_length"), _size(file, "attention.head_count")
        dim = width // heads if width and heads else None
    for name in (_FREQS, _LONG, _SHORT):
        if (tensor := file.tensors.get(name)) is None:
            continue
        if tensor.dtype != "F32":
            yield Problem(
                f"{file.name}: {name}",
                f"the factors are {tensor.dtype}; they must be F32",
                advice="convert the model again, and leave this tensor unquantized",
            )
        if dim is not None and tensor.shape != (int(dim) // 2,):
            yield Problem(
                f"{file.name}: {name}",
                f"the shape is {shown(list(tensor.shape))}, and the model rotates {int(dim) // 2} "
                "pairs",
                advice="convert the model again from the right config",
            )


@_on_gguf
def _ignored_tensor(file: Gguf) -> Iterator[Problem]:
    """Rotary factors are in a model whose graph reads them."""
    if file.arch in LLAMA_CPP_NO_FREQS and _FREQS in file.tensors:
        yield Problem(
            f"{file.name}: {_FREQS}",
            f"llama.cpp does not know this tensor for {file.arch}, and does not load a file with "
            "one tensor too many",
            advice="use a method with a type of its own (yarn, linear), or a larger base",
        )


@_on_gguf
def _missing_tensors(file: Gguf) -> Iterator[Problem]:
    """A longrope file has its two tensors."""
    lost = [name for name in (_LONG, _SHORT) if name not in file.tensors]
    if file.get("rope.scaling.type") == "longrope" and lost and _FREQS not in file.tensors:
        yield Problem(
            file.name,
            f"the type is longrope, but {' and '.join(lost)} are missing, so nothing is scaled: "
            "the converter writes them for Phi-3 and MiniCPM alone",
            advice=f"add {_FREQS} with the factors (F32), and set the type to none",
        )


def _size(file: Gguf, key: str) -> float | None:
    return positive({key: file.get(key)}, key)


_HERE = ("llama.cpp",)
GGUF_RULES = (
    Rule("gguf-metadata", "error", _HERE, _bad_metadata),
    Rule("gguf-family-base", "error", _HERE, _family_base),
    Rule("gguf-no-original", "warning", _HERE, _no_original),
    Rule("gguf-capped", "warning", _HERE, _capped),
    Rule("gguf-attention-key", "warning", _HERE, _attention_key),
    Rule("gguf-ignored-ramp", "warning", _HERE, _ignored_ramp),
    Rule("gguf-tensor-shape", "error", _HERE, _tensor_shape),
    Rule("gguf-ignored-tensor", "error", _HERE, _ignored_tensor),
    Rule("gguf-missing-tensors", "error", _HERE, _missing_tensors),
)
