"""Static strategies under every attention: what reaches the attention function is right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import ropex
from tests.support.cases import STATIC
from tests.support.models import logits, tiny_model, tokens
from tests.support.rounding import assert_alike

KINDS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
FLASH = KINDS[-1]
IDS = tokens()
ROWS = tokens(32, rows=2)
NEAR = torch.stack([torch.arange(32), 5 + 3 * torch.arange(32)])
FAR = NEAR + 131_000


class Layout(NamedTuple):
    """What a family rotates of a head of 16."""

    dim: int
    interleaved: bool
    key_heads: int


FAMILIES = {
    "llama": Layout(16, False, 2),
    "phi": Layout(8, False, 2),
    "gpt_neox": Layout(4, False, 4),
    "cohere": Layout(16, True, 2),
    "glm": Layout(8, True, 2),
}
CASES = [("llama", text) for text in STATIC] + [
    (family, text) for family in FAMILIES if family != "llama" for text in ("yarn:4", "linear:1.7")
]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of flex


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {family: tiny_model(family) for family in FAMILIES}


@pytest.fixture(autouse=True)
def _attentions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Flex attention uncompiled, and a kernel for flash attention, which needs a GPU.

    Compiled for a CPU, torch 2.13's reads memory that nobody wrote, if there are 8 tokens.
    """
    flag = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(flag, True, raising=False)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLASH, flash_kernel)
    with torch.compiler.set_stance("force_eager"):
        yield


def flash_kernel(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> Any:
    """What the kernel of flash attention computes: it is given no mask, but padded rows'."""
    assert mask is None
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def use(model: Any, kind: str) -> None:
    if kind == FLASH:  # transformers would look for the package
        model.config._attn_implementation = kind
    else:
        model.set_attn_implementation(kind)


@pytest.mark.parametrize(("family", "text"), CASES)
def test_every_static_strategy_outlives_another_attention(
    models: dict[str, Any], family: str, text: str
) -> None:
    model = models[family]
    use(model, "eager")
    with ropex.patch(model, text):
        wanted = logits(model, IDS)
        for kind in KINDS:
            use(model, kind)
            assert_alike(logits(model, IDS), wanted)


@pytest.mark.parametrize(
    ("kind", "then"),
    [("eager", FLASH), ("sdpa", "eager"), ("flex_attention", "sdpa"), (FLASH, "eager")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_attention_are_patched_verified_and_restored(
    models: dict[str, Any], family: str, kind: str, then: str
) -> None:
    model = models[family]
    use(model, then)
    plain = logits(model, IDS)
    use(model, kind)
    with ropex.patch(model, "yarn:4") as patch:
        patched = logits(model, IDS)
        assert patch.verify().logit_change > 0
        use(model, then)
        assert_alike(logits(model, IDS), patched)
        assert float((patched - plain).abs().max()) > 1e-3
        assert patch.verify().logit_change > 0
    assert model.config._attn_implementation == then
    assert torch.equal(logits(model, IDS), plain)


class Call(NamedTuple):
    """What an attention function is given."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


class Recorder:
    """An attention function that sees nothing, so that layers get the same however q, k turn."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        self.calls.append(Call(query, key, value, kwargs["scaling"]))
        return torch.zeros_like(query.transpose(1, 2)), None


@contextmanager
def not_rotating(model: nn.Module) -> Iterator[None]:
    """Cos and sin of the model are 1 and 0."""
    rotary = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
    hooks = [
        module.register_forward_hook(
            lambda module, args, made: (torch.ones_like(made[0]), torch.zeros_like(made[1]))
        )
        for module in rotary
    ]
    yield
    for hook in hooks:
        hook.remove()


def turned(states: Tensor, positions: Tensor, plan: Any, layout: Layout) -> Tensor:
    """`states`, `(batch, heads, length, head dim)`, by a plan, in float64."""
    states = states.double()
    rest, pairs = states[..., layout.dim :], states[..., : layout.dim]
    axis = -1 if layout.interleaved else -2
    shape = (-1, 2) if layout.interleaved else (2, -1)
    first, second = pairs.unflatten(-1, shape).unbind(axis)
    phases = positions[:, None, :, None].double() * plan.inv_freq
    whole = torch.complex(first, second) * torch.polar(torch.ones_like(phases), phases)
    pairs = plan.attention_scale * torch.stack([whole.real, whole.imag], axis)
    return torch.cat([pairs.flatten(-2), rest], -1)


@pytest.mark.parametrize(
    ("family", "text", "precision"),
    [(*case, "parity") for case in CASES] + [(family, "yarn:4", "exact") for family in FAMILIES],
)
def test_queries_and_keys_reach_attention_turned_by_the_plan(
    models: dict[str, Any], family: str, text: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layout, recorder = models[family], FAMILIES[family], Recorder()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLASH, recorder)
    use(model, FLASH)
    places, accuracy = (NEAR, 2e-4) if precision == "parity" else (FAR, 1e-6)
    with not_rotating(model):
        logits(model, ROWS, position_ids=places)
    plain, recorder.calls = recorder.calls, []
    with ropex.patch(model, text, precision=precision) as patch:
        logits(model, ROWS, position_ids=places)
        assert (patch.rope.dim, patch.changes_anything) == (layout.dim, True)
    assert len(plain) == len(recorder.calls) == 2
    for before, after in zip(plain, recorder.calls, strict=True):
        assert after.key.shape[1] == layout.key_heads
        assert torch.equal(after.value, before.value)
        assert after.scaling == before.scaling
        for name in ("query", "key"):
            seen, states = getattr(after, name), getattr(before, name)
            wanted = turned(states, places, patch.plan, layout)
            assert float((seen - wanted).abs().max()) < accuracy * float(states.abs().max())
            moves = float((seen - states).abs().max()) > 0.1 * float(states.abs().max())
            assert moves == bool(patch.plan.inv_freq.any())
