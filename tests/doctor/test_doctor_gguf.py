"""GGUF files: the metadata that is read, the rules on it, and damaged files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ropex.doctor import diagnose, repair

F32, F16, BF16 = 0, 1, 30


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    inner = [value_of(each) for each in value]
    head = struct.pack("<I", 9) + inner[0][:4] + struct.pack("<Q", len(inner))
    return head + b"".join(each[4:] for each in inner)


def write(path: Path, fields: dict[str, Any], tensors: dict[str, tuple[int, int]]) -> Path:
    """A GGUF file of version 3; tensors are given by length and type."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(fields))]
    parts += [text(key) + value_of(value) for key, value in fields.items()]
    for name, (length, dtype) in tensors.items():
        parts.append(text(name) + struct.pack("<IQIQ", 1, length, dtype, 0))
    path.write_bytes(b"".join(parts))
    return path


def llama(arch: Any = "llama", **more: Any) -> dict[str, Any]:
    """Metadata of a model with 4096 trained tokens; `_` in a key stands for a dot."""
    own = {"context_length": 4096, "rope.dimension_count": 128, "rope.freq_base": 10000.0}
    own |= {key.replace("__", "."): value for key, value in more.items()}
    words = {"tokenizer.ggml.tokens": ["a", "", "b"], "tokenizer.ggml.scores": [0.0, 1.0]}
    general = {"general.architecture": arch, "general.quantized": True, **words}
    present = {f"{arch}.{key}": value for key, value in own.items() if value is not None}
    return general | present


YARN: dict[str, Any] = {
    "context_length": 16384, "rope__scaling__type": "yarn", "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 4096,
}  # fmt: skip
FREQS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
LLAMA_3 = {"vocab_size": 128256, "embedding_length": 4096, "block_count": 32}
LONGROPE = {"rope__scaling__type": "longrope", "rope__scaling__original_context_length": 4096}


@pytest.mark.parametrize(
    ("fields", "tensors", "expected"),
    [
        (llama(), {}, []),
        (llama(**YARN), {"blk.0.attn_q.weight": (9, F16)}, []),
        (llama(), {FREQS: (64, F32)}, []),
        (llama(**LLAMA_3, rope__freq_base=5e5), {FREQS: (64, F32)}, []),
        (llama("phi3", **LONGROPE), {LONG: (64, F32), SHORT: (64, F32)}, []),
        (llama("qwen2", rope__freq_base=1e6), {}, []),
        (llama(rope__scaling__type="none", rope__scaling__factor=0.0), {}, []),
        ({}, {}, ["gguf-metadata"]),
        (llama(rope__freq_base="10000"), {}, ["gguf-metadata"]),
        (llama(rope__freq_base=float("nan")), {}, ["gguf-metadata"]),
        (llama(context_length=-1.0), {}, ["gguf-metadata"]),
        (llama(rope__scaling__type="llama3"), {}, ["gguf-metadata"]),
        (llama(**LLAMA_3), {}, ["gguf-family-base"]),
        (llama(**LLAMA_3, rope__freq_base=None), {}, ["gguf-family-base"]),
        (llama(**YARN | {"rope__scaling__original_context_length": None}), {},
         ["gguf-no-original"]),
        (llama(**YARN | {"context_length": 4096}), {}, ["gguf-capped"]),
        (llama(**YARN, rope__scaling__yarn_attn_factor=1.5), {}, ["gguf-attention-key"]),
        (llama(), {FREQS: (32, F32)}, ["gguf-tensor-shape"]),
        (llama(), {FREQS: (64, F16)}, ["gguf-tensor-shape"]),
        (llama(), {FREQS: (32, BF16)}, ["gguf-tensor-shape"] * 2),
        (llama("qwen2"), {FREQS: (64, F32)}, ["gguf-ignored-tensor"]),
        (llama("gemma2"), {FREQS: (64, F32)}, ["gguf-ignored-tensor"]),
        (llama("granite"), {FREQS: (64, F32)}, []),
        (llama("unknown"), {FREQS: (64, F32)}, []),
        (llama(**YARN, rope__scaling__yarn_beta_fast=32.0), {}, []),
        (llama(**YARN, rope__scaling__yarn_beta_slow=1.0), {}, []),
        (llama(**YARN, rope__scaling__yarn_ext_factor=1.0), {}, []),
        (llama(**YARN, rope__scaling__yarn_beta_fast=8.0), {}, ["gguf-ignored-ramp"]),
        (llama("qwen2", **YARN, rope__scaling__yarn_beta_slow=2.0), {}, ["gguf-ignored-ramp"]),
        (llama(**YARN, rope__scaling__yarn_ext_factor=0.5), {}, ["gguf-ignored-ramp"]),
        (llama(**YARN, rope__scaling__yarn_beta_fast=8.0, rope__scaling__yarn_beta_slow=2.0), {},
         ["gguf-ignored-ramp"] * 2),
        (llama("mistral3", **YARN, rope__scaling__yarn_beta_fast=8.0), {}, []),
        (llama(rope__scaling__yarn_beta_fast=8.0), {}, []),
        (llama(**LONGROPE), {}, ["gguf-missing-tensors"]),
    ],
)  # fmt: skip
def test_rules(tmp_path: Path, fields: Any, tensors: Any, expected: list[str]) -> None:
    path = write(tmp_path / "m.gguf", fields, tensors)
    before = path.read_bytes()
    found = diagnose(path)
    assert [each.rule for each in found] == expected
    assert all(each.fix and each.engines == ("llama.cpp",) for each in found)
    assert repair(path).left == found
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_ignored_ramp_says_which_flag_is_read(tmp_path: Path) -> None:
    fields = llama(**YARN, rope__scaling__yarn_beta_fast=8.0)
    (found,) = diagnose(write(tmp_path / "m.gguf", fields, {}))
    assert "llama.rope.scaling.yarn_beta_fast" in found.where
    assert "--yarn-beta-fast 8" in found.fix


def test_a_tensor_too_many_keeps_a_file_from_loading(tmp_path: Path) -> None:
    (found,) = diagnose(write(tmp_path / "m.gguf", llama("qwen2"), {FREQS: (64, F32)}))
    assert found.severity == "error"
    assert "does not load" in found.message


def test_pairs_without_a_dimension_count_follow_from_the_heads(tmp_path: Path) -> None:
    fields = llama(rope__dimension_count=None, embedding_length=4096, attention__head_count=32)
    path = write(tmp_path / "m.gguf", fields, {FREQS: (64, F32)})
    assert diagnose(path) == ()


def test_every_truncation_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(**YARN), {FREQS: (64, F32)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is damaged|is not a GGUF file"):
            diagnose(path)


ONE_KEY = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a")


@pytest.mark.parametrize(
    "content",
    [
        b"GGML" + bytes(20),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63),
        ONE_KEY + struct.pack("<I", 99),
        ONE_KEY + struct.pack("<IIQ", 9, 0, 2**63),
        ONE_KEY + struct.pack("<IIQQ", 9, 8, 1, 2**63),
        ONE_KEY + struct.pack("<I", 9) * 9,
        ONE_KEY + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 5000,
    ],
)
def test_impossible_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf (is damaged|is not a GGUF|has version)"):
        diagnose(tmp_path / "m.gguf")


def test_folder_of_gguf_files_says_to_name_one(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama(), {})
    with pytest.raises(FileNotFoundError, match=f"name a file, such as {path}"):
        diagnose(tmp_path)
