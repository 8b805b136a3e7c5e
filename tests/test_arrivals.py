"""Models arrive in many ways: loaded in parts, offloaded, wrapped, quantised, sharded, compiled.

Each way with each kind of table, patched before and after; and `verify` catches tables that were
rounded, rebuilt or replaced behind ropex's back.
"""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from accelerate import (
    Accelerator,
    cpu_offload,
    disk_offload,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from accelerate.state import AcceleratorState, GradientState
from cases import logits, tokens
from remote_code import DOUBLES
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from transformers import BitsAndBytesConfig, TorchAoConfig

import ropex
from ropex.families.tiny import tiny_model
from ropex.sites.slots import Given

CPU = torch.device("cpu")
IDS, SHORT = tokens(), tokens(20)
TEXT = "yarn:4"

# One model for each kind of table, and its attribute.
TABLES = {
    "llama": "inv_freq",  # a buffer
    "gemma3_text": "inv_freq",  # one for each type of layers
    "gptj": "embed_positions",  # rows of sinusoids, on each attention
    "roformer": "weight",  # the same as an embedding
    "phimoe": "rope_init_fn",  # a function
    "baichuan": "cos_cached",  # rows of cos and sin, in code of its own
}
MAKERS: dict[str, Callable[[], Any]] = {
    **{kind: partial(tiny_model, kind) for kind in TABLES},
    "baichuan": DOUBLES["baichuan"],
}
# What is a table, by the names of buffers.
TABLE = re.compile("inv_freq|embed_positions|cached")

ROFORMER_LOADED = "a loaded weight asks for a gradient, and `fits` takes it for a learned one"
ROFORMER_WEIGHT = (
    "the weight is put back, or asked for its device, as if it had stayed where it was"
)


def crossed(broken: dict[tuple[str, str], str], *names: str, without: str = "") -> list[Any]:
    """Each kind of table with each name; those that are broken are marked as such."""
    left_out = set(without.split())
    return [
        pytest.param(
            kind,
            name,
            marks=[pytest.mark.xfail(strict=True, reason=broken[kind, name])]
            if (kind, name) in broken
            else [],
        )
        for kind in TABLES
        for name in names
        if not {kind, name, f"{kind}-{name}"} & left_out
    ]


class Reference(NamedTuple):
    """What a model computes to which nothing happens."""

    plain: Tensor
    patched: Tensor


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    made = {}
    for kind, make in MAKERS.items():
        model = make()
        plain = logits(model, SHORT)
        with ropex.patch(model, TEXT):
            made[kind] = Reference(plain, logits(model, IDS))
    return made


def near(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=1e-5)


def check(model: Any, patch: ropex.Patch, reference: Reference) -> None:
    """The patch holds, before and after it is verified, and goes without a trace."""
    near(logits(model, IDS), reference.patched)
    assert patch.verify().logit_change > 0
    near(logits(model, IDS), reference.patched)
    patch.remove()
    near(logits(model, SHORT), reference.plain)


# Loaded.


def in_layers(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("0", "1")]


def partly_on_disk(model: nn.Module) -> dict[str, str]:
    """A device map: layers on disk, all else on the CPU."""
    layers = [name for name in in_layers(model) if name.count(".") < 4]
    leaves = [name for name, module in model.named_modules() if not [*module.children()]]
    others = [name for name in leaves if not name.startswith(tuple(layers))]
    return {**dict.fromkeys(layers, "disk"), **dict.fromkeys(others, "cpu")}


MAPS: dict[str, Callable[[nn.Module], Any]] = {
    "auto": lambda model: "auto",
    "cpu": lambda model: "cpu",
    "root": lambda model: {"": "cpu"},
    "disk": partly_on_disk,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        {("roformer", name): ROFORMER_LOADED for name in MAPS},
        *MAPS,
        without="baichuan",  # with code of its own, it is not loaded so
    ),
)
def test_device_maps(
    kind: str, name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path / "saved")
    device_map = MAPS[name](model)
    loaded = type(model).from_pretrained(
        tmp_path / "saved", device_map=device_map, offload_folder=tmp_path / "offloaded"
    )
    assert any(p.is_meta for p in loaded.parameters()) == (name == "disk")
    check(loaded, ropex.patch(loaded, TEXT), references[kind])


EMPTY: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "weights": init_empty_weights,
    "everything": lambda: torch.device("meta"),
}
_PUT_BACK = "a meta tensor is put back as the table of a model that has weights by now"


def on_meta(kind: str, name: str) -> Any:
    source = MAKERS[kind]()
    with EMPTY[name]():
        model = type(source)(copy.deepcopy(source.config))
    model.tie_weights()
    return model.eval()


@pytest.mark.filterwarnings("ignore:the rotary tables of this model were lost")
@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        {
            **{(kind, "everything"): _PUT_BACK for kind in ("llama", "gemma3_text", "gptj")},
            ("phimoe", "everything"): "a meta buffer is patched, which its module does not read",
            ("baichuan", "weights"): "verify compares with a model whose own tables are lost",
        },
        *EMPTY,
    ),
)
@torch.no_grad()
def test_weights_that_come_later(kind: str, name: str, references: dict[str, Reference]) -> None:
    source, model = MAKERS[kind](), on_meta(kind, name)
    patch = ropex.patch(model, TEXT)
    with pytest.raises(RuntimeError, match="no weights yet"):
        patch.verify()
    model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict(), strict=False)
    model.tie_weights()
    for path, buffer in source.named_buffers():  # no checkpoint holds these
        lost = torch.full_like(buffer, torch.nan) if TABLE.search(path) else buffer
        model.get_buffer(path).copy_(lost)
    near(logits(model, IDS), references[kind].patched)
    patch.verify()
    near(logits(model, IDS), references[kind].patched)
    patch.remove()
    if kind != "baichuan":  # whose own tables nobody makes again
        near(logits(model, SHORT), references[kind].plain)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gptj", "roformer", "baichuan"])
def test_checkpoints_dispatched_later(
    kind: str, device_map: Any, references: dict[str, Reference], tmp_path: Path
) -> None:
    MAKERS[kind]().save_pretrained(tmp_path)
    model = on_meta(kind, "weights")
    patch = ropex.patch(model, TEXT)
    check(load_checkpoint_and_dispatch(model, tmp_path, device_map), patch, references[kind])


# Wrapped.


class Quantised(nn.Module):
    """A linear layer whose weight is whole numbers, with a scale for each row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        whole = (linear.weight.detach() / scale).round().to(torch.int8)
        self.weight, self.scale = (nn.Parameter(t, requires_grad=False) for t in (whole, scale))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


class LowRank(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.linspace(-0.3, 0.3, rows)[:, None])
        self.right = nn.Parameter(torch.linspace(-0.3, 0.3, columns)[None])

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right


def linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear and "gate" not in n]


def quantised(model: nn.Module, folder: Path) -> nn.Module:
    for name, linear in linears(model):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Quantised(linear))
    return model


def parametrised(model: nn.Module, folder: Path) -> nn.Module:
    for _, linear in linears(model):
        parametrize.register_parametrization(linear, "weight", LowRank(*linear.weight.shape))
    return model


def with_adapters(model: Any, folder: Path) -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    names = [name for name, _ in linears(model)]
    config = peft.LoraConfig(
        target_modules=names, init_lora_weights=False, exclude_modules="lm_head"
    )
    made: nn.Module = peft.get_peft_model(model, config).eval()
    return made


def offloaded(
    model: Any, folder: Path, to: Callable[..., Any] = cpu_offload, buffers: bool = False
) -> nn.Module:
    folders = () if to is cpu_offload else (folder,)
    made: nn.Module = to(model, *folders, execution_device=CPU, offload_buffers=buffers)
    return made


def prepared(model: Any, folder: Path, precision: str = "no") -> nn.Module:
    AcceleratorState._reset_state(reset_partial_state=True)
    made: nn.Module = Accelerator(cpu=True, mixed_precision=precision).prepare(model)
    return made


def in_parallel(model: nn.Module, folder: Path) -> nn.Module:
    return DataParallel(model)


def distributed_data(model: nn.Module, folder: Path) -> nn.Module:
    return DistributedDataParallel(model)


def layer_types(model: nn.Module) -> set[type[nn.Module]]:
    return {type(model.get_submodule(name)) for name in in_layers(model) if name.count(".") < 4}


def sharded_flat(model: nn.Module, folder: Path) -> nn.Module:
    policy = ModuleWrapPolicy(layer_types(model))
    return FullyShardedDataParallel(model, device_id=CPU, auto_wrap_policy=policy)


def sharded(model: nn.Module, folder: Path, **settings: Any) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for module in [*model.modules()][::-1]:
        if type(module) in layer_types(model):
            fully_shard(module, mesh=mesh, **settings)
    fully_shard(model, mesh=mesh, **settings)
    return model


def sharded_half(model: nn.Module, folder: Path) -> nn.Module:
    return sharded(model, folder, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


SAME: dict[str, Callable[[Any, Path], Any]] = {  # these compute as before
    "cpu_offload": offloaded,
    "cpu_offload_buffers": partial(offloaded, buffers=True),
    "disk_offload": partial(offloaded, to=disk_offload),
    "disk_offload_buffers": partial(offloaded, to=disk_offload, buffers=True),
    "accelerate": prepared,
    "in_parallel": in_parallel,
    "distributed_data": distributed_data,
    "sharded_flat": sharded_flat,
    "sharded": sharded,
}
OTHER: dict[str, Callable[[Any, Path], Any]] = {  # these round, or have other weights
    "accelerate_half": partial(prepared, precision="bf16"),
    "quantised": quantised,
    "parametrised": parametrised,
    "adapters": with_adapters,
    "sharded_half": sharded_half,
}
WRAPS = SAME | OTHER


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """A process group of one, and no trace of accelerate's."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.filterwarnings("ignore:FSDP is switching", "ignore:`is_gradient_checkpointing` is")
@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        {
            **{("roformer", name): ROFORMER_WEIGHT for name in SAME if "offload" in name},
            **{
                ("roformer", name): "a sharded weight is a DTensor, which has no plain rows"
                for name in ("sharded", "sharded_half")
            },
        },
        *WRAPS,
        # torch refuses to flatten frozen weights with others; peft's adapters warn of baichuan's
        # own class, and transformers makes parts of phimoe otherwise.
        without="roformer-sharded_flat baichuan-adapters",
    ),
)
def test_wrapped_before_and_after(
    kind: str, name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    wrap = WRAPS[name]
    other = wrap(MAKERS[kind](), tmp_path / "other")
    plain = logits(other, SHORT)
    later = ropex.patch(getattr(other, "module", other) if has_no_config(other) else other, TEXT)
    expected = Reference(plain, logits(other, IDS))
    if name in SAME:
        near(plain, references[kind].plain)
        near(expected.patched, references[kind].patched)
    check(other, later, expected)

    model = MAKERS[kind]()
    patch = ropex.patch(model, TEXT)
    check(wrap(model, tmp_path / "model"), patch, expected)


def has_no_config(model: nn.Module) -> bool:
    return isinstance(model, DataParallel | DistributedDataParallel)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("gptj", marks=pytest.mark.xfail(strict=True, reason="guards on no hook")),
        "roformer",
        "baichuan",
    ],
)
def test_compiled_code_follows_a_later_patch(kind: str) -> None:
    torch._dynamo.reset()
    model = MAKERS[kind]()
    compiled: Any = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it traces
        plain = logits(compiled, SHORT)
        with ropex.patch(model, TEXT):
            near(logits(compiled, SHORT), logits(model, SHORT))
        near(logits(compiled, SHORT), plain)
