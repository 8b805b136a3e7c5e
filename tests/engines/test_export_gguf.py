"""GGUF files that are written anew: read back with the `gguf` package, equal but for the rope."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ropex
from ropex.engines import write_gguf
from ropex.engines.llama_cpp import for_llama_cpp
from ropex.engines.wanted import read
from ropex.families.tiny import tiny_config
from tests.support.configs import write_config
from tests.support.shell import Shell

gguf: Any = pytest.importorskip("gguf", reason="GGUF files need the gguf package")
ROPE = ropex.rope.Rope.standard(16, 1e4, 32)
FREQS = "rope_freqs.weight"


def write(
    path: Path, arch: str = "llama", *, factors: bool = True, alignment: int = 32, **keys: Any
) -> Path:
    """A GGUF file with strings, arrays, a quantized tensor, and a scaling of its own."""
    writer = gguf.GGUFWriter(path, arch)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "tiny 'model' $HOME")
    writer.add_uint32(f"{arch}.context_length", 32)
    writer.add_uint32(f"{arch}.rope.dimension_count", 16)
    writer.add_float32(f"{arch}.rope.freq_base", 1e4)
    writer.add_string(f"{arch}.rope.scaling.type", "yarn")
    writer.add_float32(f"{arch}.rope.scaling.factor", 2.0)
    writer.add_bool(f"{arch}.rope.scaling.finetuned", False)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 0.25])
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value)
    random = np.random.default_rng(0)
    writer.add_tensor("token_embd.weight", random.random((3, 5), dtype=np.float32))
    writer.add_tensor("output_norm.weight", random.random(7, dtype=np.float32))
    if factors:
        writer.add_tensor(FREQS, np.full(8, 7, dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", random.random((64, 64)).astype(np.float16))
    blocks = random.integers(0, 255, (64, 68), dtype=np.uint8)  # two blocks of 34 bytes a row
    quantized = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def keys_of(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {k: v.contents() for k, v in fields.items() if not k.startswith("GGUF.")}


def tensors_of(path: Path) -> dict[str, tuple[Any, bytes, list[int]]]:
    return {
        each.name: (each.tensor_type, each.data.tobytes(), each.shape.tolist())
        for each in gguf.GGUFReader(path).tensors
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "model")


@pytest.mark.parametrize(
    "text", ["llama3:4", "ntk_mixed:4", "mrrope:4", "yarn:factor=3,truncate=false", "ntk:2+clip:3"]
)
def test_tables_come_back_to_1e_7(tmp_path: Path, folder: Path, text: str) -> None:
    source = write(tmp_path / "in.gguf")
    found = write_gguf(read(folder, text), source, tmp_path / "out.gguf")
    plan = ropex.strategy(text).plan(ROPE)
    kind, raw, shape = tensors_of(tmp_path / "out.gguf")[FREQS]
    assert (kind, shape) == (gguf.GGMLQuantizationType.F32, [8])
    divisors = np.frombuffer(raw, dtype=np.float32).astype(np.float64)
    turning = plan.inv_freq.numpy() > 0
    wanted = ROPE.inv_freq.numpy()[turning] / plan.inv_freq.numpy()[turning]
    np.testing.assert_allclose(divisors[turning], wanted, rtol=1e-7)
    assert (divisors[~turning] > 1e29).all()
    keys = keys_of(tmp_path / "out.gguf")
    assert keys["llama.rope.scaling.type"] == "none"
    scale = keys.get("llama.rope.scaling.attn_factor", 1.0)
    assert scale == pytest.approx(float(plan.attention_scale), rel=1e-7)
    assert found.exactness == "exact"


def test_everything_else_stays(tmp_path: Path, folder: Path) -> None:
    source = write(tmp_path / "in.gguf", alignment=4096)
    before = source.read_bytes()
    write_gguf(read(folder, "linear:4"), source, tmp_path / "out.gguf")
    assert source.read_bytes() == before
    old, new = tensors_of(source), tensors_of(tmp_path / "out.gguf")
    del old[FREQS]  # of the scaling that was there
    assert new == old
    changed = {
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0,
        "llama.context_length": 128,
    }
    assert keys_of(tmp_path / "out.gguf") == keys_of(source) | changed
    assert gguf.GGUFReader(tmp_path / "out.gguf").alignment == 4096


def test_stale_scaling_goes(tmp_path: Path, folder: Path) -> None:
    source = write(tmp_path / "in.gguf")
    write_gguf(read(folder, "ntk:4"), source, tmp_path / "out.gguf")
    keys = keys_of(tmp_path / "out.gguf")
    assert {key for key in keys if ".rope." in key} == {
        "llama.rope.dimension_count", "llama.rope.freq_base", "llama.rope.scaling.type",
        "llama.rope.scaling.finetuned",
    }  # fmt: skip
    assert keys["llama.rope.freq_base"] == pytest.approx(1e4 * 4 ** (16 / 14), rel=1e-7)


def test_yarn_with_a_temperature_is_metadata_alone(tmp_path: Path, folder: Path) -> None:
    source = write(tmp_path / "in.gguf", factors=False)
    write_gguf(read(folder, "yarn:factor=4,attention_factor=1.25"), source, tmp_path / "out.gguf")
    keys = keys_of(tmp_path / "out.gguf")
    assert keys["llama.rope.scaling.type"] == "yarn"
    assert keys["llama.rope.scaling.original_context_length"] == 32
    left = 1.25 / (0.1 * np.log(4) + 1)
    assert keys["llama.rope.scaling.attn_factor"] == pytest.approx(left, rel=1e-7)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "gemma2"])
def test_graphs_that_ignore_the_tensor_are_refused(tmp_path: Path, arch: str) -> None:
    folder = write_config(tmp_path / "model", model_type=arch, architectures=None)
    source = write(tmp_path / "in.gguf", arch)
    found = write_gguf(read(folder, "mrrope:4"), source, tmp_path / "out.gguf")
    assert found.exactness == "not expressible"
    assert arch in found.reason
    assert not (tmp_path / "out.gguf").exists()
    assert write_gguf(read(folder, "ntk:4"), source, tmp_path / "out.gguf").exactness == "exact"


RAMP = "yarn:factor=4,beta_fast=2,beta_slow=0.05"


def test_a_ramp_of_its_own_is_a_tensor(tmp_path: Path, folder: Path) -> None:
    source = write(tmp_path / "in.gguf", factors=False)
    assert write_gguf(read(folder, RAMP), source, tmp_path / "out.gguf").exactness == "exact"
    keys = keys_of(tmp_path / "out.gguf")
    assert not [key for key in keys if "yarn" in key]
    assert keys["llama.rope.scaling.type"] == "none"
    assert keys["llama.rope.scaling.attn_factor"] == pytest.approx(0.1 * np.log(4) + 1, rel=1e-7)
    plan = ropex.strategy(RAMP).plan(ROPE)
    divisors = np.frombuffer(tensors_of(tmp_path / "out.gguf")[FREQS][1], dtype=np.float32)
    np.testing.assert_allclose(ROPE.inv_freq.numpy() / divisors, plan.inv_freq.numpy(), rtol=1e-7)


def test_a_ramp_that_rounds_to_the_usual_one_needs_no_tensor(folder: Path) -> None:
    # Of 32 trained tokens, 8 turns are made by no pair, and neither are 32.
    assert for_llama_cpp(read(folder, "yarn:factor=4,beta_fast=8")).tensors is None


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "gemma2", "gemma"])
def test_a_ramp_that_no_file_can_say_is_for_flags_alone(tmp_path: Path, arch: str) -> None:
    folder = write_config(tmp_path / "model", model_type=arch, architectures=None)
    found = for_llama_cpp(read(folder, RAMP))
    assert (found.exactness, found.metadata, found.tensors) == ("exact", None, None)
    assert "--yarn-beta-slow 0.05" in found.flag_text
    assert "--yarn-beta-fast 2.0" in found.flag_text
    source = write(tmp_path / "in.gguf", arch)
    written = write_gguf(read(folder, RAMP), source, tmp_path / "out.gguf")
    assert written.exactness == "not expressible"
    assert found.flag_text in written.reason
    assert not (tmp_path / "out.gguf").exists()


def test_the_two_loaders_that_read_the_ramp_get_its_keys(folder: Path) -> None:
    found = for_llama_cpp(read(folder, RAMP), "mistral3")
    assert found.metadata is not None
    assert found.metadata["mistral3.rope.scaling.yarn_beta_fast"] == 2.0
    assert found.metadata["mistral3.rope.scaling.yarn_beta_slow"] == 0.05
    assert found.tensors is None


@pytest.mark.parametrize("text", ["linear:4", "ntk:4", "yarn:4", RAMP])
def test_flags_do_not_reach_the_sliding_layers_of_gemma_2(tmp_path: Path, text: str) -> None:
    folder = write_config(tmp_path / "model", model_type="gemma2", architectures=None)
    words = for_llama_cpp(read(folder, text)).flags
    assert not {"--rope-freq-base", "--rope-scaling", "--rope-scale"} & set(words)
    said = [word for word in words if word.startswith("gemma2.rope.")]
    kind, factor = {"l": ("linear", 4.0), "n": ("none", 1.0), "y": ("yarn", 4.0)}[text[0]]
    assert f"gemma2.rope.scaling.type=str:{kind}" in said
    if factor != 1:
        assert f"gemma2.rope.scaling.factor=float:{factor}" in said
    base = 1e4 * 4 ** (16 / 14) if text == "ntk:4" else 1e4
    (found,) = (word for word in said if "freq_base" in word)
    assert float(found.rpartition("float:")[2]) == pytest.approx(base, rel=1e-7)


def test_linear_scaling_of_latent_attention_is_not_called_exact(tmp_path: Path) -> None:
    # Its graph multiplies the softmax by (1 + 0.1 ln factor)^2 whatever the type of scaling is.
    tiny_config("deepseek_v2").save_pretrained(tmp_path)
    found = for_llama_cpp(read(tmp_path, "linear:4"))
    assert found.exactness == "not expressible"
    assert "softmax" in found.reason
    for text in ("none", "ntk:4"):
        assert for_llama_cpp(read(tmp_path, text)).exactness == "exact"


def test_an_unknown_family_with_sliding_layers_gets_no_flags(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    folder = write_config(
        tmp_path / "model", model_type="gpt_oss", architectures=None, layer_types=kinds,
        num_hidden_layers=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    found = for_llama_cpp(read(folder, "linear:4"))
    assert found.exactness == "not expressible"
    assert "sliding" in found.reason


def test_phi3_has_two_lists(tmp_path: Path) -> None:
    lists = {"long_factor": [1, 1, 1.5, 2, 2.5, 3, 4, 4], "short_factor": [1.0] * 8}
    folder = write_config(
        tmp_path / "model", model_type="phi3", architectures=None, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, original_max_position_embeddings=32, max_position_embeddings=128,
        rope_scaling={"type": "longrope", **lists}, rope_parameters=None,
    )  # fmt: skip
    source = write(tmp_path / "in.gguf", "phi3", factors=False)
    found = write_gguf(read(folder), source, tmp_path / "out.gguf")
    assert found.exactness == "approximate"
    tensors = tensors_of(tmp_path / "out.gguf")
    long = np.frombuffer(tensors["rope_factors_long.weight"][1], dtype=np.float32)
    assert long.tolist() == [1, 1, 1.5, 2, 2.5, 3, 4, 4]
    short = np.frombuffer(tensors["rope_factors_short.weight"][1], dtype=np.float32)
    assert short.tolist() == [1] * 8
    scale = keys_of(tmp_path / "out.gguf")["phi3.rope.scaling.attn_factor"]
    assert scale == pytest.approx(np.sqrt(1 + np.log(4) / np.log(32)), rel=1e-7)


def test_a_failure_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.gguf"), tmp_path / "out.gguf"
    out.write_text("mine", encoding="utf-8")

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_gguf(read(folder, "linear:4"), source, out, force=True)
    assert out.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gguf", "model", "out.gguf"]


def test_mistakes_are_one_line(shell: Shell) -> None:
    write(Path("in.gguf"))
    Path("mine.gguf").write_text("mine", encoding="utf-8")
    Path("bad.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    write(Path("part.gguf"), split__count=2)
    write(Path("qwen.gguf"), "qwen2")
    command = ["export", "model", "-s", "llama3:4", "--for", "llama.cpp"]
    assert "given together" in shell.refused(*command, "--gguf", "in.gguf")
    assert "write elsewhere" in shell.refused(*command, "--gguf", "in.gguf", "-o", "in.gguf")
    assert "--force" in shell.refused(*command, "--gguf", "in.gguf", "-o", "mine.gguf")
    assert "bad.gguf" in shell.refused(*command, "--gguf", "bad.gguf", "-o", "o.gguf")
    assert "no such file" in shell.refused(*command, "--gguf", "none.gguf", "-o", "o.gguf")
    assert "--merge" in shell.refused(*command, "--gguf", "part.gguf", "-o", "o.gguf")
    assert "qwen2" in shell.refused(*command, "--gguf", "qwen.gguf", "-o", "o.gguf")
    Path("small").mkdir()
    write_config(Path("small"), head_dim=8)
    small = ["export", "small", "--for", "llama.cpp", "--gguf", "in.gguf", "-o", "o.gguf"]
    assert "rotates 16 dimensions" in shell.refused(*small)
    wrong = ["export", "model", "--for", "vllm", "--gguf", "in.gguf", "-o", "o.gguf"]
    assert "for llama.cpp" in shell.refused(*wrong)


def test_the_command_writes_and_says_how_to_serve(shell: Shell) -> None:
    write(Path("in.gguf"))
    command = ["export", "model", "-s", "mrrope:4", "--for", "llama.cpp", "--gguf", "in.gguf"]
    out = shell.done(*command, "-o", "my out.gguf")
    assert out.splitlines()[0] == "llama-server -m 'my out.gguf' -c 128"
    assert FREQS in tensors_of(Path("my out.gguf"))
    again = json.loads(shell.done(*command, "-o", "my out.gguf", "--force", "--json"))
    assert again["exactness"] == "exact"


def test_without_the_package_the_message_says_what_to_install(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match="pip install gguf"):
        write_gguf(read(folder), tmp_path / "in.gguf", tmp_path / "out.gguf")
