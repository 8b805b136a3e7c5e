"""Models that come with code of their own: tables lost while loading, and `load_remote`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import ropex
from ropex.checkpoints.loading import load_model, load_skeleton
from ropex.checkpoints.remote_code import load_remote
from tests.support.models import TRAINED, logits, tokens
from tests.support.remote_code import DOUBLES
from tests.support.remote_rotary import ChatGLMRotary
from tests.support.rounding import assert_alike

# Such code sets `rope_scaling`, of which transformers 5 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning")
VERSION_5 = int(transformers.__version__.split(".")[0]) >= 5
IDS = tokens(24)
TABLES = ("inv_freq", "cos_cached", "sin_cached")
NAN = float("nan")


# Tables that were lost.


def held(model: Any) -> list[tuple[Any, str, Tensor]]:
    return [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in TABLES
        if isinstance(getattr(module, name, None), Tensor)
    ]


def damage(model: Any, value: float | None, names: tuple[str, ...] = TABLES) -> None:
    for module, name, table in held(model):
        if name in names:
            lost = table.to("meta") if value is None else torch.full_like(table, value)
            setattr(module, name, lost)


def check_repair(model: Any, wanted: Tensor) -> None:
    before = [(id(table), str(table)) for *_, table in held(model)]
    with pytest.warns(UserWarning, match="were lost"):
        patch = ropex.patch(model, "none")
    assert_alike(logits(model, IDS), wanted)
    patch.verify()
    patch.remove()
    assert [(id(table), str(table)) for *_, table in held(model)] == before


@pytest.mark.parametrize(
    ("name", "value", "names"),
    [
        ("baichuan", NAN, TABLES),
        ("baichuan", 3.5, TABLES[1:]),
        ("baichuan", NAN, TABLES[2:]),
        ("baichuan2", NAN, TABLES),
        ("baichuan2", None, TABLES),
        ("internlm", 3.5, TABLES),
        ("internlm2", 0.0, TABLES),
        ("internlm_dynamic", NAN, TABLES[1:]),
        ("internlm2_linear", NAN, TABLES),
        ("internlm2_dynamic", 3.5, TABLES),
        ("internlm2_5", 3.5, TABLES),
        ("internlm2_5", NAN, TABLES),
    ],
)
def test_lost_tables_are_rebuilt_for_as_long_as_the_patch_lasts(
    name: str, value: float | None, names: tuple[str, ...]
) -> None:
    model = DOUBLES[name]()
    wanted = logits(model, IDS)
    damage(model, value, names)
    check_repair(model, wanted)


@pytest.mark.parametrize("text", ["linear:2", "yarn:4", "dynamic:length=64"])
def test_a_strategy_over_lost_tables_is_that_over_whole_ones(text: str) -> None:
    whole, lost = DOUBLES["internlm"](), DOUBLES["internlm"]()
    damage(lost, NAN)
    with pytest.warns(UserWarning, match="were lost"):
        ropex.patch(lost, text)
    with ropex.patch(whole, text):
        assert_alike(logits(lost, IDS), logits(whole, IDS))


def test_qwen_that_has_lost_more_than_tables_is_refused() -> None:
    model: Any = DOUBLES["qwen"]()
    model.transformer.h[1].attn.logn_tensor.zero_()
    with pytest.raises(ropex.UnsupportedModel, match=r"load it with ropex\.checkpoints"):
        ropex.patch(model, "linear:2")


@pytest.fixture
def unfilled() -> Iterator[None]:
    """Memory that nobody fills is NaN, and not by chance the table of an earlier test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not VERSION_5, reason="transformers 4 keeps what the constructor has built")
@pytest.mark.parametrize(
    "name",
    [
        *("baichuan", "baichuan2", "internlm", "internlm2", "internlm2_5"),
        *((each) for each in ("internlm_dynamic", "internlm2_linear")),
    ],
)
def test_tables_lost_by_version_5_are_rebuilt(name: str, tmp_path: Path, unfilled: None) -> None:
    model: Any = DOUBLES[name]()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    check_repair(loaded, logits(model, IDS))


# Half precision.


@pytest.mark.parametrize(
    "name", ["baichuan", "baichuan2", "internlm", "internlm2", "internlm2_5", "qwen"]
)
def test_a_model_in_half_precision_starts_from_whole_frequencies(name: str) -> None:
    rope = ropex.rope_of(DOUBLES[name]().to(torch.bfloat16))
    wanted = 10000.0 ** -(torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close(rope.inv_freq, wanted, rtol=1e-6, atol=0)


def test_chatglm_was_trained_in_half_precision() -> None:
    model: Any = DOUBLES["chatglm"]()
    for layer in model.transformer.layers:
        layer.attention.rotary_emb = ChatGLMRotary(64)
    wanted = ChatGLMRotary(64).inv_freq.double()
    for whole in (model, model.float()):
        assert torch.equal(ropex.rope_of(whole).inv_freq, wanted)


# Checkpoints with their code.

CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(
        self, max_position_embeddings=32, rope_theta=10000, rope_scaling=None, **rest
    ):
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
        super().__init__(**rest)


class Rotary(nn.Module):
    def __init__(self, dim, length):
        super().__init__()
        self.dim, self.base, self.max_seq_len_cached = dim, 10000, length
        inv_freq = 1.0 / self.base ** (torch.arange(0, dim, 2).float() / dim)
        angles = torch.outer(torch.arange(length).float(), inv_freq).repeat(1, 2)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("cos_cached", angles.cos(), persistent=False)
        self.register_buffer("sin_cached", angles.sin(), persistent=False)

    def forward(self, x, seq_len=None):
        return self.cos_cached[:seq_len].to(x.dtype), self.sin_cached[:seq_len].to(x.dtype)


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.scaling, self.longest = config.rope_scaling, config.max_length
        self.embed = nn.Embedding(64, 16)
        self.rotary_emb = Rotary(16, config.max_position_embeddings)
        self.lm_head = nn.Linear(16, 64, bias=False)
        self.register_buffer("table", torch.zeros(1).half(), persistent=False)
        self.register_buffer("said", torch.zeros(1, dtype=config.torch_dtype), persistent=False)

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, **unused):
        hidden = self.embed(input_ids)
        cos, sin = self.rotary_emb(hidden, seq_len=input_ids.shape[1])
        first, second = hidden.chunk(2, dim=-1)
        turned = hidden * cos + torch.cat((-second, first), dim=-1) * sin
        scores = turned @ turned.transpose(1, 2)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e4)
        for mask in self.get_head_mask(None, 1):
            hidden = hidden + scores.softmax(-1) @ hidden
        return CausalLMOutputWithPast(logits=self.lm_head(hidden))
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint; what transformers copies of its code stays beside it."""
    modules = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    made = tmp_path / f"own_{tmp_path.name}"
    made.mkdir()
    config = {"model_type": "own", "auto_map": AUTO_MAP, "torch_dtype": "float32"}
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (made / "own.py").write_text(CODE, encoding="utf-8")
    weights = {"embed.weight": torch.randn(64, 16), "lm_head.weight": torch.randn(64, 16)}
    save_file(weights, made / "model.safetensors")
    return made


def test_a_checkpoint_with_its_code_is_loaded_as_it_was_saved(folder: Path) -> None:
    from transformers import PretrainedConfig

    before = set(dir(PretrainedConfig)), torch.get_default_dtype()
    model = load_remote(folder)
    assert (set(dir(PretrainedConfig)), torch.get_default_dtype()) == before
    assert (model.scaling, model.longest, model.training) == (None, 20, False)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == dict(model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, saved[name])
    plain = logits(model, IDS)
    with ropex.patch(model, "none"):
        assert torch.equal(logits(model, IDS), plain)
    with ropex.patch(model, "linear:2") as patch:
        assert patch.rope.trained_length == TRAINED
        assert (logits(model, IDS) - plain).abs().max() > 0.1
    assert torch.isfinite(plain).all()


@pytest.mark.parametrize(
    ("dtype", "device_map"), [("auto", None), ("bfloat16", "cpu"), ("auto", "auto")]
)
def test_code_of_its_own_is_loaded_so_by_every_command(
    folder: Path, dtype: str, device_map: str | None
) -> None:
    wanted = load_remote(folder, torch.float32 if dtype == "auto" else torch.bfloat16)
    skeleton = load_skeleton(folder, trust_remote_code=True)
    assert ropex.rope_of(skeleton, TRAINED).trained_length == TRAINED
    model = load_model(folder, dtype=dtype, device_map=device_map, trust_remote_code=True)
    assert (model.dtype, model.training) == (wanted.dtype, False)
    assert torch.equal(model.rotary_emb.cos_cached, wanted.rotary_emb.cos_cached)
    assert torch.equal(logits(model, IDS), logits(wanted, IDS))
    with ropex.patch(model, "linear:2") as patch:
        patch.verify()


def test_a_head_that_is_tied_is_not_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({"embed.weight": weights["embed.weight"]}, folder / "model.safetensors")
    model = load_remote(folder)
    assert model.lm_head.weight is model.embed.weight
    assert torch.equal(model.embed.weight, weights["embed.weight"])


def test_weights_of_torch_are_read_too(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for number, (name, weight) in enumerate(weights.items(), start=1):
        torch.save({name: weight}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    assert torch.equal(load_remote(folder).lm_head.weight, weights["lm_head.weight"])


def without_embedding(folder: Path) -> None:
    save_file({"lm_head.weight": torch.zeros(64, 16)}, folder / "model.safetensors")


def without_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (without_embedding, ValueError, r"lacks 1 of the model's weights: embed\.weight"),
        (without_code, ValueError, "names no code of its own .auto_map"),
        (without_weights, FileNotFoundError, "holds no weights"),
    ],
)
def test_what_a_checkpoint_lacks_is_named(
    folder: Path, spoil: Any, error: type[Exception], message: str
) -> None:
    from transformers import PretrainedConfig

    before = set(dir(PretrainedConfig))
    spoil(folder)
    with pytest.raises(error, match=message):
        load_remote(folder, torch.bfloat16)
    assert set(dir(PretrainedConfig)) == before
    assert torch.get_default_dtype() == torch.float32


def test_weights_have_the_dtype_that_is_asked(folder: Path) -> None:
    model = load_remote(folder, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model, IDS)).all()


def test_tables_keep_the_precision_that_the_code_gave_them(folder: Path) -> None:
    rotary = load_remote(folder, torch.bfloat16).rotary_emb
    assert {table.dtype for table in rotary.buffers()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_in_half_precision_follow_the_weights(folder: Path, dtype: torch.dtype) -> None:
    assert load_remote(folder, dtype).table.dtype == dtype  # ChatGLM


def test_the_config_says_the_dtype_that_is_asked(folder: Path) -> None:
    assert load_remote(folder, torch.bfloat16).said.dtype == torch.bfloat16
