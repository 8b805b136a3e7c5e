"""The accuracy of cos and sin far out, in the two modes of precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ropex
from ropex.rope import Rope
from tests.support.cases import ALL, FAMILIES
from tests.support.models import logits, rope_settings, tiny_model, tokens
from tests.support.rounding import assert_alike

FAR = torch.tensor([[0, 1, 4095, 65_537, 131_071, 131_072]])
IDS = tokens()


def reference(inv_freq: torch.Tensor, scale: float, positions: torch.Tensor) -> torch.Tensor:
    """cos and sin, `(2, length, pairs)`, float64, number by number."""
    rows = [[scale * part(int(m) * float(f)) for f in inv_freq]
            for part in (math.cos, math.sin) for m in positions[0]]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64).view(2, positions.shape[1], -1)


@pytest.mark.parametrize(
    "text", ["none", "yarn:4", "theta:500000", "clip:4", "dynamic", "dynamic_yarn"]
)
def test_exact_is_within_a_millionth_and_float32_is_not(text: str) -> None:
    model = tiny_model("llama", head_dim=64, **rope_settings(5e5))
    rotary, x = model.model.rotary_emb, torch.zeros(1, 1, 1)
    with ropex.patch(model, text, precision="exact") as patch:
        plan = patch.strategy.plan(patch.rope, int(FAR.max()) + 1)
        exact = torch.stack(rotary(x, FAR))[:, 0, :, :32]
    wanted = reference(plan.inv_freq, plan.attention_scale, FAR)
    assert (exact - wanted).abs().max() < 1e-6
    with ropex.patch(model, text):
        parity = torch.stack(rotary(x, FAR))[:, 0, :, :32]
    assert (parity - wanted).abs().max() > 1e-4


def test_float32_is_off_by_thousandths_at_131072() -> None:
    """The figure that the documentation gives, over the positions just below."""
    rotary = tiny_model("llama", head_dim=128).model.rotary_emb
    positions = torch.arange(131_072 - 512, 131_073)[None]
    cos, sin = rotary(torch.zeros(1, 1, 1), positions)
    phases = positions[0, :, None].double() * Rope.standard(128, 1e4, 32).inv_freq
    off = max(float((cos[0, :, :64] - phases.cos()).abs().max()),
              float((sin[0, :, :64] - phases.sin()).abs().max()))  # fmt: skip
    assert 1e-3 < off < 1e-2


@pytest.mark.parametrize("text", ["none", *ALL])
def test_exact_computes_the_same_model(text: str) -> None:
    model = tiny_model("llama")
    with ropex.patch(model, text):
        wanted = logits(model, IDS)
    with ropex.patch(model, text, precision="exact") as patch:
        assert_alike(logits(model, IDS), wanted)
        assert patch.verify().sites == 1
    plain = tiny_model("llama")
    assert torch.equal(logits(model, IDS), logits(plain, IDS))


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_in_every_family(family: str) -> None:
    model = tiny_model(family)
    with ropex.patch(model, "yarn:4"):
        wanted = logits(model, IDS)
    with ropex.patch(model, "yarn:4", precision="exact"):
        assert_alike(logits(model, IDS), wanted)


@pytest.mark.parametrize("text", ["dynamic_yarn", "yarn:4"])
def test_exact_and_unrotated_go_together(text: str) -> None:
    model: Any = tiny_model("llama", num_hidden_layers=1).double()
    with ropex.patch(model, text, precision="exact"):
        wanted = logits(model, IDS)[:, -1]
    with ropex.patch(model, text, precision="exact", cache="unrotated"):
        assert_alike(logits(model, IDS)[:, -1], wanted)


def test_exact_keeps_the_precision_that_the_family_has() -> None:
    rotary = tiny_model("olmo2").model.rotary_emb
    x = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    model = tiny_model("olmo2")
    with ropex.patch(model, "yarn:4", precision="exact"):
        assert model.model.rotary_emb(x, FAR)[0].dtype == rotary(x, FAR)[0].dtype == torch.float32


def test_rows_of_a_batch_have_lengths_of_their_own() -> None:
    model = tiny_model("llama").double()
    ids = torch.cat([IDS, IDS.roll(1, 1)])
    positions = torch.stack([torch.arange(100), torch.arange(100) // 4])
    with ropex.patch(model, "dynamic", precision="exact"):
        both = logits(model, ids, position_ids=positions)
        for row in (0, 1):
            alone = logits(model, ids[row : row + 1], position_ids=positions[row : row + 1])
            assert_alike(both[row : row + 1], alone)


def test_a_layout_that_is_not_known_is_refused() -> None:
    model = tiny_model("llama")
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda x, position_ids: tuple(p.flip(-1) for p in forward(x, position_ids))
    with pytest.raises(ropex.UnsupportedModel, match='precision="exact" is not available'):
        ropex.patch(model, "yarn:4", precision="exact")
