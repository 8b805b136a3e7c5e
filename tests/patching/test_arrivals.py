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
import transformers
from accelerate import (
    Accelerator,
    cpu_offload,
    disk_offload,
    init_empty_weights,
    load_checkpoint_and_dispatch,
)
from accelerate.state import AcceleratorState, GradientState
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
from ropex.model.sites.slots import Given
from tests.support.models import logits, tokens
from tests.support.remote_code import DOUBLES
from tests.support.rounding import assert_alike as near

NEW = not transformers.__version__.startswith("4.")
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


def crossed(*names: str, without: str = "") -> list[tuple[str, str]]:
    """Each kind of table with each name."""
    left_out = set(without.split())
    return [
        (kind, name)
        for kind in TABLES
        for name in names
        if not {kind, name, f"{kind}-{name}"} & left_out
    ]


# Of torch, transformers and peft, about what they do by themselves.
THEIRS = pytest.mark.filterwarnings(
    "ignore:FSDP is switching to use `NO_SHARD`",
    "ignore:Model has `tie_word_embeddings=True` and a tied layer",
)


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
    owners = [name for name, module in model.named_modules() if module._parameters]
    others = [name for name in owners if not name.startswith(tuple(layers))]
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
        *MAPS,
        # With code of its own, baichuan is not loaded so.
        without="baichuan gptj-cpu gptj-root roformer-cpu roformer-root phimoe-cpu phimoe-root",
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


def on_meta(kind: str, name: str) -> Any:
    source = MAKERS[kind]()
    with EMPTY[name]():
        model = type(source)(copy.deepcopy(source.config))
    model.tie_weights()
    return model.eval()


@pytest.mark.filterwarnings("ignore:the rotary tables of this model were lost")
@pytest.mark.parametrize(
    ("kind", "name"),
    # transformers 4 leaves a scale of GPT-J's attention on meta, which is no weight and no buffer.
    crossed(*EMPTY, without="" if NEW else "gptj-everything"),
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
        model.get_buffer(path).copy_(torch.tensor(torch.nan) if TABLE.search(path) else buffer)
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


def with_adapters(model: Any, folder: Path) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    names = [name for name, _ in linears(model) if re.search(r"\.\d+\.", name)]
    config = peft.LoraConfig(target_modules=names, init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


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
    "cpu_offload": partial(offloaded, buffers=True),
    "disk_offload": partial(offloaded, to=disk_offload),
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
# torch does not flatten frozen weights with others, and rounds roformer's before its rows are taken
# or after; the rest is where no table is touched.
LEFT_OUT = " ".join(
    ["roformer-sharded_flat", "roformer-sharded_half"]
    + [
        f"{kind}-{name}"
        for kind in ("gemma3_text", "roformer", "phimoe")
        for name in ("accelerate", "in_parallel", "distributed_data", "parametrised")
    ]
)


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one, and no trace of accelerate's."""
    place = f"file://{tmp_path_factory.mktemp('group')}/store"
    distributed.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@THEIRS
@pytest.mark.parametrize(("kind", "name"), crossed(*WRAPS, without=LEFT_OUT))
def test_wrapped_models_are_patched(
    kind: str, name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    model, expected = WRAPS[name](MAKERS[kind](), tmp_path), references[kind]
    inner = model.module if isinstance(model, DataParallel | DistributedDataParallel) else model
    patch = ropex.patch(inner, TEXT)
    if name in OTHER:
        patched = logits(model, IDS)
        with patch.suspended():
            expected = Reference(logits(model, SHORT), patched)
    check(model, patch, expected)


@THEIRS
@pytest.mark.parametrize(("kind", "name"), crossed(*WRAPS, without=LEFT_OUT))
def test_patched_models_are_wrapped(
    kind: str, name: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    model, expected = MAKERS[kind](), references[kind]
    if name in OTHER:
        twin = WRAPS[name](MAKERS[kind](), tmp_path)
        plain = logits(twin, SHORT)
        ropex.patch(twin, TEXT)
        expected = Reference(plain, logits(twin, IDS))
    patch = ropex.patch(model, TEXT)
    check(WRAPS[name](model, tmp_path), patch, expected)


@pytest.mark.parametrize("kind", ["gptj", "baichuan"])
def test_compiled_code_follows_a_later_patch(kind: str) -> None:  # llama's: test_survival
    torch._dynamo.reset()
    model = MAKERS[kind]()
    compiled: Any = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, while it traces
        plain = logits(compiled, SHORT)
        with ropex.patch(model, TEXT):
            near(logits(compiled, SHORT), logits(model, SHORT))
        near(logits(compiled, SHORT), plain)


def test_a_model_without_a_config_is_patched_by_what_it_holds() -> None:
    model = MAKERS["llama"]()
    assert ropex.patch(DataParallel(model), TEXT).verify().logit_change > 0


@THEIRS
def test_buffers_in_half_precision_are_not_those_of_a_patch(
    references: dict[str, Reference],
) -> None:
    half = MixedPrecision(buffer_dtype=torch.bfloat16)
    model = FullyShardedDataParallel(MAKERS["llama"](), device_id=CPU, mixed_precision=half)
    ropex.patch(model, TEXT)
    near(logits(model, IDS), references["llama"].patched)


@THEIRS
@pytest.mark.parametrize("first", ["patch", "adapters"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_adapters_are_saved_beside_a_base_that_computes_the_same(
    kind: str, first: str, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = MAKERS[kind]()
    model.save_pretrained(tmp_path / "base")
    if first == "patch":
        ropex.patch(model, TEXT)
    adapted = with_adapters(model, tmp_path)
    if first == "adapters":
        ropex.patch(adapted, TEXT)
    wanted = logits(adapted, IDS)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.config.save_pretrained(tmp_path / "base")
    base = type(model).from_pretrained(tmp_path / "base")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    near(logits(again, IDS), wanted)

    merged = adapted.merge_and_unload()
    near(logits(merged, IDS), wanted)
    merged.save_pretrained(tmp_path / "merged")
    near(logits(type(model).from_pretrained(tmp_path / "merged"), IDS), wanted)


def whole_numbers() -> Any:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="torchao is not a dependency, not even of the tests"
    )
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def bits(count: int) -> Any:
    pytest.importorskip(
        "bitsandbytes", reason="bitsandbytes is not a dependency, not even of the tests"
    )
    return BitsAndBytesConfig(**{f"load_in_{count}bit": True})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", [whole_numbers, partial(bits, 8), partial(bits, 4)])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gptj", "roformer", "phimoe"])
def test_models_that_are_quantised_as_they_load(kind: str, method: Any, tmp_path: Path) -> None:
    settings = {"quantization_config": method(), "device_map": "cpu", "dtype": torch.float32}
    source = MAKERS[kind]()
    source.save_pretrained(tmp_path)
    model = type(source).from_pretrained(tmp_path, **settings)
    plain = logits(model, SHORT)
    assert not torch.equal(plain, logits(source, SHORT))
    with ropex.patch(model, TEXT) as patch:
        assert patch.verify().logit_change > 0
    assert torch.equal(logits(model, SHORT), plain)


# Cast and copied. A flat table is in test_survival.


CASTS = ("bfloat16", "half")


@pytest.mark.parametrize(("kind", "cast"), crossed(*CASTS))
def test_rounding_before_patching_does_not_reach_the_plan(kind: str, cast: str) -> None:
    exact = ropex.rope_of(MAKERS[kind]()).inv_freq
    rounded = ropex.rope_of(getattr(MAKERS[kind](), cast)()).inv_freq
    torch.testing.assert_close(rounded, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "cast"), crossed(*CASTS, without="llama"))
def test_tables_survive_casts(kind: str, cast: str) -> None:
    model = MAKERS[kind]()
    patch = ropex.patch(model, TEXT)
    wanted = [site.live(100) for site in patch.sites]
    getattr(model, cast)()
    logits(model, IDS)
    patch.verify()
    model.float()
    logits(model, IDS)
    patch.verify()
    for site, before in zip(patch.sites, wanted, strict=True):
        torch.testing.assert_close(site.live(100), before, rtol=1e-6, atol=0)
    getattr(model, cast)()
    patch.remove()
    logits(model, SHORT)


def pickled(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {"copied": copy.deepcopy, "pickled": pickled}


@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        *COPIES,
        without="llama baichuan-pickled",  # the class of a double has no module to be found in
    ),
)
def test_a_copy_stays_patched_on_its_own(
    kind: str, name: str, references: dict[str, Reference]
) -> None:
    model = MAKERS[kind]()
    with ropex.patch(model, TEXT):
        twin = COPIES[name](model)
    near(logits(twin, IDS), references[kind].patched)
    near(logits(model, SHORT), references[kind].plain)


# Broken behind ropex's back.


def attribute(site: Any) -> str:
    name = TABLES[site.config.model_type]
    return str(site.slot.name(name)) if hasattr(site, "slot") else name


def without_answer(site: Any) -> None:
    """What ropex has put around the table is gone."""
    site.module._forward_pre_hooks.clear()
    vars(site.module).pop("forward", None)


def in_half(table: Any) -> Any:
    if isinstance(table, Given):
        return Given(in_half(table.table), table.scale)
    if isinstance(table, nn.Parameter):
        return nn.Parameter(in_half(table.data), requires_grad=False)
    return table.bfloat16().float()


def rounded(model: nn.Module, site: Any, fresh: Any) -> None:
    without_answer(site)
    setattr(site.module, attribute(site), in_half(getattr(site.module, attribute(site))))


def rebuilt(model: nn.Module, site: Any, fresh: Any) -> None:
    without_answer(site)
    setattr(site.module, attribute(site), getattr(fresh, attribute(site)))


def overwritten(model: nn.Module, site: Any, fresh: Any) -> None:
    """In place, as by an initialisation of all weights."""
    live, old = (getattr(module, attribute(site)).data for module in (site.module, fresh))
    live[: len(old)] = old


def replaced(model: nn.Module, site: Any, fresh: Any) -> None:
    parent, _, leaf = site.name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, fresh)


BREAKS: dict[str, Callable[[nn.Module, Any, Any], None]] = {
    "rounded": rounded,
    "rebuilt": rebuilt,
    "overwritten": overwritten,
    "replaced": replaced,
}


@pytest.mark.parametrize(
    ("kind", "name"),
    crossed(
        *BREAKS,
        # There is no tensor to round, and where a patch answers, what it answers for is not read.
        without="baichuan-rounded roformer-overwritten phimoe-overwritten baichuan-overwritten",
    ),
)
def test_verify_names_the_table_that_was_broken(
    kind: str, name: str, references: dict[str, Reference]
) -> None:
    for number in range(len(ropex.patch(MAKERS[kind](), TEXT).sites)):
        model, fresh = MAKERS[kind](), MAKERS[kind]()
        patch = ropex.patch(model, TEXT)
        logits(model, IDS)
        site, kept = patch.planned[number].site, patch.planned[number].kept
        if kept and name != "rounded":  # the table of a fresh module is as good
            continue
        BREAKS[name](model, site, fresh.get_submodule(site.name))
        with pytest.raises(RuntimeError, match=re.escape(str(site))):
            patch.verify()
        patch.remove()
        near(logits(model, SHORT), references[kind].plain)
