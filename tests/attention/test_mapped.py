"""Position maps on live models: whole, in pieces, padded, cached, generated and trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ropex
from ropex.attention.layout import STEP, fit
from ropex.attention.turns import Turn
from ropex.checkpoints.loading import load_skeleton
from ropex.families.tiny import causal_types, tiny_model
from tests.support.models import logits

# Half-split pairs, query norms, partial and interleaved rotation, soft-caps, windows, two tables,
# latent attention, sinks.
FAMILIES = ("llama", "qwen3", "phi", "glm", "gemma2", "gemma3_text", "deepseek_v3", "gpt_oss")
MIXTURES = ("deepseek_v3", "gpt_oss")  # whose experts have no float64
TEXTS = ("rerope", "self_extend", "dca", "streaming")
TRAINED, TOKENS = 32, 110

families = pytest.mark.parametrize("family", [each for each in FAMILIES if each in causal_types()])


pytestmark = pytest.mark.filterwarnings("ignore:the checkpoint is scaled already")


def model_of(family: str, **changes: Any) -> Any:
    model = tiny_model(family, **changes)
    return model if family in MIXTURES else model.double()


def ids_of(count: int = TOKENS) -> Tensor:
    return torch.randint(1, 60, (1, count))


def assert_alike(found: Tensor, wanted: Tensor) -> None:
    """To the rounding of sums over some hundred terms in a few layers."""
    rounding = 2**10 * torch.finfo(wanted.dtype).eps * float(wanted.abs().max())
    # Eager attention takes its softmax in float32, whatever the dtype.
    least = 2**6 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=max(rounding, least))


def mapped(model: Any) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "ropex_mapped")]


@families
def test_within_the_trained_length_nothing_changes(family: str) -> None:
    model, ids = model_of(family), ids_of(TRAINED)
    plain = logits(model, ids)
    for text in TEXTS:
        with ropex.patch(model, text, trained_length=TRAINED):
            assert torch.equal(logits(model, ids), plain)


@families
def test_positions_divided_by_two_in_all_heads_are_linear_interpolation(family: str) -> None:
    """Whatever the layout in which a layer holds its states."""
    # Where one table serves all layers, linear interpolation changes those with a window as well.
    wide = {"sliding_window": 4096} if family in ("gemma2", "gpt_oss") else {}
    model, ids = model_of(family, **wide), ids_of()
    with ropex.patch(model, "linear:2", trained_length=TRAINED):
        wanted = logits(model, ids)
    plain = logits(model, ids)
    with ropex.patch(model, "ms_poe:2,high=2,always=true", trained_length=TRAINED):
        assert_alike(logits(model, ids), wanted)
    assert float((wanted - plain).abs().max()) > 1e-3 * float(plain.abs().max())
    assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layouts_are_found_in_half_precision(dtype: torch.dtype) -> None:
    model = tiny_model("llama").to(dtype)
    with ropex.patch(model, "self_extend", trained_length=TRAINED):
        assert len(mapped(model)) == model.config.num_hidden_layers
        assert logits(model, ids_of()).isfinite().all()


@families
@pytest.mark.parametrize("text", ["self_extend", "dca+yarn:4", "streaming"])
def test_a_text_may_be_cut_padded_and_decoded_in_any_way(family: str, text: str) -> None:
    model, ids = model_of(family), ids_of()
    with torch.no_grad(), ropex.patch(model, text, trained_length=TRAINED):
        whole = model(ids).logits
        parts, cache = [], None
        for part in ids.split([70, 20, *[1] * 20], dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            parts.append(out.logits)
            cache = out.past_key_values
        assert_alike(torch.cat(parts, 1), whole)
        pad = torch.cat([torch.ones(1, 13, dtype=torch.long), ids[:, :-13]], 1)
        both, mask = torch.cat([ids, pad]), torch.ones(2, TOKENS, dtype=torch.long)
        mask[1, :13] = 0
        places = (mask.cumsum(1) - 1).clamp(min=0)
        padded = model(both, attention_mask=mask, position_ids=places).logits
        assert_alike(padded[0], whole[0])
        if family != "gemma2":  # whose rows without any key are no numbers, patched or not
            assert_alike(padded[1, 13:], whole[0, :-13])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generated_text_is_the_same_with_and_without_a_cache(settings: dict[str, Any]) -> None:
    model, ids = model_of("llama"), ids_of(60)
    given = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    without = {name: value for name, value in settings.items() if name == "num_beams"}
    with ropex.patch(model, "self_extend", trained_length=TRAINED):
        cached = model.generate(ids, **given, **settings)
        assert torch.equal(cached, model.generate(ids, **given, **without, use_cache=False))
    assert not torch.equal(cached, model.generate(ids, **given, **without))


def test_only_layers_that_see_far_are_mapped() -> None:
    model = tiny_model("gemma3_text", sliding_window=16)
    kinds = model.config.layer_types
    with ropex.patch(model, "self_extend", trained_length=TRAINED):
        found = [kinds[module.layer_idx] for module in mapped(model)]
    assert set(found) == {"full_attention"}
    assert len(found) == kinds.count("full_attention")
    assert not mapped(model)


def test_a_map_is_learned_under() -> None:
    model, ids = model_of("llama"), ids_of()
    model.train()
    with ropex.patch(model, "self_extend", trained_length=TRAINED):
        model(ids, labels=ids).loss.backward()
    grads = [each.grad for each in model.parameters()]
    assert all(each is not None and each.isfinite().all() for each in grads)
    assert all(float(each.abs().max()) > 0 for each in grads if each is not None)


def test_a_patch_says_and_verifies_what_it_does() -> None:
    model = model_of("llama")
    with ropex.patch(model, "rerope+logn", trained_length=TRAINED) as patch:
        assert "mapped positions" in repr(patch)
        assert not patch.in_config
        assert patch.verify().logit_change > 1e-3
    with ropex.patch(model, "rerope", trained_length=TRAINED) as patch:
        patch.verify()
        for module in mapped(model):
            del module.ropex_mapped
        with pytest.raises(RuntimeError, match="logits beyond position 0 moved by 0"):
            patch.verify()


def test_a_cache_from_before_the_patch_is_refused() -> None:
    model, ids = model_of("llama"), ids_of(20)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        with (
            ropex.patch(model, "rerope", trained_length=TRAINED),
            pytest.raises(RuntimeError, match="filled without this patch"),
        ):
            model(ids[:, :1], past_key_values=cache)


def test_a_model_without_weights_is_planned_and_not_run(tmp_path: Any) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    skeleton = load_skeleton(tmp_path)
    with ropex.patch(skeleton, "dca") as patch:
        assert patch.plan.positions is not None
        with pytest.raises(RuntimeError, match="before the model had weights"):
            skeleton(ids_of(4))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("falcon", "does not call transformers' attention interface"),
        ("beam", "after it has rotated them"),
        ("deepseek_v4", "in a way of its own"),
    ],
)
def test_a_model_that_no_map_fits_is_refused(family: str, words: str) -> None:
    if family not in causal_types():
        pytest.skip("this version of transformers has no such family")
    model = tiny_model(family)
    before = logits(model, ids_of(16)) if family == "falcon" else None
    with pytest.raises(ropex.UnsupportedModel, match=words):
        ropex.patch(model, "self_extend", trained_length=TRAINED)
    assert not mapped(model)
    assert before is None or before.isfinite().all()


@pytest.mark.parametrize("layout", ["halves", "neighbours"])
@pytest.mark.parametrize(("start", "pairs"), [(0, 8), (0, 3), (10, 3)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_layout_of_states_is_found(layout: Any, start: int, pairs: int, sign: int) -> None:
    tables = [torch.rand(each, dtype=torch.float64) for each in (3, 8)]
    turn = Turn(tables[0 if pairs == 3 else 1], layout, start, sign)
    before = torch.randn(1, 2, 5, 16, dtype=torch.float64)
    angles = sign * STEP * turn.inv_freq
    found = fit(before, turn(before, angles.cos(), angles.sin()), tables)
    assert found is not None
    assert (found.layout, found.start, found.sign) == (layout, start, sign)
    assert found.inv_freq is turn.inv_freq
    assert fit(before, before * 1.1, tables) is None
    still = fit(before, before, tables)
    assert still is not None
    assert not len(still.inv_freq)
