"""Copy a GGUF file with other rotary metadata and tensors; needs the `gguf` package."""

from __future__ import annotations

import importlib
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ropex.engines.answer import Export
from ropex.engines.facts import LLAMA_CPP_ARCHITECTURES
from ropex.engines.llama_cpp import FREQS, LISTS, for_llama_cpp
from ropex.engines.wanted import Wanted
from ropex.files.places import BUILT, workplace

# Kept: Granite goes by it whether it rotates at all.
_NOT_OURS = "rope.scaling.finetuned"


def write_gguf(wanted: Wanted, source: Path, out: Path, *, force: bool = False) -> Export:
    """Write a copy of a GGUF file that llama.cpp computes the wanted frequencies from.

    All other tensors and keys stay as they are, byte for byte. The file appears complete or not at
    all, and is never held in memory.

    Args:
        wanted: The rotary embedding.
        source: A GGUF file of the same model; it is only read.
        out: Where to write.
        force: Replace `out` if it exists.

    Returns:
        What was written; nothing was where it is not expressible.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or it is the source.
        ValueError: The package is missing, or the file is no GGUF file of this model.
    """
    gguf = _package()
    _check_out(source, out, force)
    reader = _open(gguf, source)
    arch = _checked_arch(reader, wanted, source)
    answer = for_llama_cpp(wanted, arch, in_file=True)
    if answer.exactness == "not expressible":
        return answer
    out.parent.mkdir(parents=True, exist_ok=True)
    with workplace(out) as place:
        built = place / BUILT
        with closing(gguf.GGUFWriter(built, arch, endianess=reader.endianess)) as writer:
            _copy(gguf, reader, writer, arch, answer)
        os.replace(built, out)
    return answer


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ValueError("GGUF files need the gguf package: pip install gguf") from None


def _check_out(source: Path, out: Path, force: bool) -> None:
    if not source.is_file():
        raise FileNotFoundError(f"no such file: {source}")
    if out.exists() and os.path.samefile(source, out):
        raise FileExistsError(f"{out} is the file that is read; write elsewhere")
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder; name a file")
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; --force replaces it")


def _open(gguf: Any, source: Path) -> Any:
    try:
        return gguf.GGUFReader(source)
    except Exception as error:  # the package raises whatever the damage leads to
        raise ValueError(f"{source} is not a GGUF file, or it is damaged ({error})") from error


def _checked_arch(reader: Any, wanted: Wanted, source: Path) -> str:
    """The architecture, of a whole file of the same model."""
    arch = _value(reader, "general.architecture")
    if not isinstance(arch, str) or not arch:
        raise ValueError(f"{source} does not say general.architecture; convert the model again")
    if (_value(reader, "split.count") or 0) > 1:
        raise ValueError(f"{source} is one of several; join them: llama-gguf-split --merge")
    named = LLAMA_CPP_ARCHITECTURES.get(wanted.model_type, arch)
    if named != arch:
        raise ValueError(f"{source} is a {arch} model, and the checkpoint becomes a {named} model")
    dim = _value(reader, f"{arch}.rope.dimension_count")
    if dim is not None and dim != wanted.dim:
        raise ValueError(
            f"{source} rotates {dim} dimensions of a head, and the checkpoint {wanted.dim}; is it "
            "the same model?"
        )
    return arch


def _value(reader: Any, key: str) -> Any:
    found = reader.get_field(key)
    return None if found is None else found.contents()


def _copy(gguf: Any, reader: Any, writer: Any, arch: str, answer: Export) -> None:
    writer.data_alignment = reader.alignment
    assert answer.metadata is not None  # the architecture is known
    _copy_fields(gguf, reader, writer, arch, answer.metadata)
    kept = [each for each in reader.tensors if each.name not in (FREQS, *LISTS)]
    ours = {
        name: np.asarray(values, dtype=np.float32)
        for name, values in (answer.tensors or {}).items()
    }
    for name, values in ours.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for each in kept:
        data = each.data
        writer.add_tensor_info(each.name, data.shape, data.dtype, data.nbytes, each.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in ours.values():
        writer.write_tensor_data(values)
    for each in kept:
        writer.write_tensor_data(each.data, tensor_endianess=reader.endianess)


def _copy_fields(gguf: Any, reader: Any, writer: Any, arch: str, metadata: dict[str, Any]) -> None:
    """All keys but those of the old scaling; then ours."""
    dropped = (f"{arch}.rope.scaling.", f"{arch}.rope.scale_linear")
    for key, found in reader.fields.items():
        scaling = key.startswith(dropped) and key != f"{arch}.{_NOT_OURS}"
        written = key == "general.architecture" or key.startswith("GGUF.")  # by the writer itself
        if scaling or written or key in metadata:
            continue
        kind = found.types[0]
        inner = found.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, found.contents(), kind, sub_type=inner)
    kinds = gguf.GGUFValueType
    of = {int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    for key, value in metadata.items():
        writer.add_key_value(key, value, of[type(value)])
