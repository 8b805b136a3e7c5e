"""Shifted sparse attention against full attention with a mask for each head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import ropex
from ropex.attention.shifted import shift_attention
from ropex.errors import UnsupportedModel
from tests.support.models import VOCABULARY, logits, tiny_model, tokens
from tests.support.rounding import assert_alike, rounding

HEADS = 4


def visible(length: int, size: int, heads: int = HEADS) -> Tensor:
    """What each query may see, `(1, heads, length, length)`, by the two formulas alone."""
    seen = torch.zeros(1, heads, length, length, dtype=torch.bool)
    for head in range(heads):
        for i in range(length):
            for j in range(i + 1):
                if head < heads // 2:
                    seen[0, head, i, j] = i // size == j // size
                else:
                    seen[0, head, i, j] = (i + size // 2) // size == (j + size // 2) // size
    return seen


def by_hand(model: Any, ids: Tensor, seen: Tensor, **inputs: Any) -> Tensor:
    """Logits of `model` with eager attention and this mask."""
    model.set_attn_implementation("eager")
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    found: Tensor = model(ids, attention_mask=mask, use_cache=False, **inputs).logits
    return found


def trained(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Logits in training mode, in which the model stays."""
    found: Tensor = model.train()(ids, use_cache=False, **inputs).logits
    return found


def gradients(model: Any, found: Tensor, ids: Tensor, at: Any = slice(None)) -> dict[str, Tensor]:
    """Of the mean cross-entropy of made-up goals at some places."""
    goals = (ids * 7 + 3) % VOCABULARY
    functional.cross_entropy(found[at].flatten(0, -2), goals[at].flatten()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    most = rounding(torch.stack([gradient.norm() for gradient in wanted.values()]))
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= most, name


LENGTHS = [(48, 4, 12), (48, 3, 16), (50, 4, 13), (49, 2, 25), (7, 4, 2), (5, 4, 2), (3, 4, 1)]
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 2}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}),
    ("llama", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("llama", {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 3}),
    ("qwen2", {}),
    ("gpt_neox", {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
    ("granite", {"attention_multiplier": 0.1}),
]


def assert_as_by_hand(
    family: str, changes: dict[str, Any], length: int, groups: int, size: int
) -> None:
    ids = tokens(length, rows=2)
    plain, model = (tiny_model(family, **changes) for _ in range(2))
    heads = model.config.num_attention_heads
    wanted = by_hand(plain, ids, visible(length, size, heads))
    with shift_attention(model, groups):
        found = trained(model, ids)
        assert_alike(found, wanted)
        assert_same_gradients(gradients(model, found, ids), gradients(plain, wanted, ids))


@pytest.mark.parametrize(("length", "groups", "size"), LENGTHS)
def test_groups_of_any_length_are_those_of_the_formulas(
    length: int, groups: int, size: int
) -> None:
    assert_as_by_hand("llama", {}, length, groups, size)


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_heads_are_shifted_by_halves(family: str, changes: dict[str, Any]) -> None:
    assert_as_by_hand(family, changes, 50, 4, 13)


def test_it_is_in_place_again_after_the_patch_below_was_suspended() -> None:
    model, ids = tiny_model(), tokens(48)
    plain = tiny_model()
    with ropex.patch(model, "linear:4") as patch, shift_attention(model) as shift:
        wanted = trained(model, ids)
        with patch.suspended():
            assert torch.equal(logits(model.eval(), ids), logits(plain.eval(), ids))
        assert torch.equal(trained(model, ids), wanted)
        patch.verify()
        assert torch.equal(trained(model, ids), wanted)
        shift.remove()
        with patch.suspended():
            pass
        assert trained(model, ids).ne(wanted).any()
    assert torch.equal(trained(model, ids), trained(plain, ids))
    assert model.config._attn_implementation == "sdpa"


def test_a_patch_above_is_suspended_without_it() -> None:
    model, ids = tiny_model(), tokens(48)
    with shift_attention(model):
        shifted = trained(model, ids)
        with ropex.patch(model, "linear:4") as patch:
            wanted = trained(model, ids)
            with patch.suspended():
                assert torch.equal(trained(model, ids), shifted)
            assert torch.equal(trained(model, ids), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stays_hidden(side: str) -> None:
    ids, padding = tokens(50, rows=2), torch.ones(2, 50, dtype=torch.long)
    padding[1, slice(0, 17) if side == "left" else slice(33, 50)] = 0
    real = padding.bool()
    plain, model = tiny_model(), tiny_model()
    alone = torch.eye(50, dtype=torch.bool)  # padding sees itself, or its softmax would be none
    wanted = by_hand(plain, ids, visible(50, 13) & real[:, None, None] | alone)
    with shift_attention(model):
        found = trained(model, ids, attention_mask=padding)
        assert_alike(found[real], wanted[real])
        assert_same_gradients(
            gradients(model, found, ids, real), gradients(plain, wanted, ids, real)
        )


def test_packed_documents_do_not_see_each_other() -> None:
    ids, places = tokens(50), torch.cat([torch.arange(20), torch.arange(30)])[None]
    document = torch.tensor([0] * 20 + [1] * 30)
    same = document[:, None] == document[None]
    plain, model = tiny_model(), tiny_model()
    wanted = by_hand(plain, ids, visible(50, 13) & same, position_ids=places)
    with shift_attention(model):
        found = trained(model, ids, position_ids=places)
    assert_alike(found, wanted)


@torch.no_grad()
def test_no_logit_is_moved_by_a_later_token() -> None:
    model, ids = tiny_model(), tokens(32)
    with shift_attention(model):
        before = trained(model, ids)
        for place in range(32):
            changed = ids.clone()
            changed[0, place] = 3 + (ids[0, place] - 2) % (VOCABULARY - 3)
            moved = (trained(model, changed) - before).abs().amax(-1)[0] > 1e-6
            assert not moved[:place].any()
            assert moved[place]


@torch.no_grad()
def test_what_half_of_the_heads_separate_the_others_join() -> None:
    model, ids = tiny_model(), tokens(32)
    changed = ids.clone()
    changed[0, 7] += 1
    with shift_attention(model):
        moved = (trained(model, changed) - trained(model, ids)).abs().amax(-1)[0] > 1e-6
    # The first group ends with 7, and a shifted one has 4 to 11: two layers carry it on to 15.
    assert torch.equal(moved, (torch.arange(32) >= 7) & (torch.arange(32) < 16))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_evaluation_is_as_ever_to_the_last_bit(family: str) -> None:
    model, ids = tiny_model(family), tokens(40, rows=2)
    padding = torch.ones_like(ids)
    padding[1, :9] = 0
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False}
    plain, padded = logits(model, ids), logits(model, ids, attention_mask=padding)
    texts = model.generate(ids, attention_mask=padding, **settings)
    with shift_attention(model):
        trained(model, ids)
        assert torch.equal(logits(model.eval(), ids), plain)
        assert torch.equal(logits(model, ids, attention_mask=padding), padded)
        assert torch.equal(model.generate(ids, attention_mask=padding, **settings), texts)


def test_removal_leaves_nothing_behind() -> None:
    model, ids = tiny_model(), tokens(40)
    config, before = model.config, [dict(vars(module)) for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    plain = trained(model, ids)
    handle = shift_attention(model)
    assert not torch.equal(trained(model, ids), plain)
    handle.remove()
    handle.remove()
    assert torch.equal(trained(model, ids), plain)
    assert model.config is config
    assert [vars(module).keys() for module in model.modules()] == [each.keys() for each in before]
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert config._attn_implementation == "sdpa"


def test_no_other_model_is_shifted() -> None:
    model = tiny_model()
    other: Any = type(model)(model.config)
    ids = tokens(40)
    plain = trained(other, ids)
    with shift_attention(model):
        assert torch.equal(trained(other, ids), plain)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:length=128"])
@pytest.mark.parametrize("last", ["shift", "patch"])
def test_a_patched_model_is_shifted_too(text: str, last: str) -> None:
    plain, model, ids = tiny_model(), tiny_model(), tokens(48)
    unpatched = logits(model, ids)
    ropex.patch(plain, text)
    wanted = by_hand(plain, ids, visible(48, 12))
    patch = ropex.patch(model, text)
    shift = shift_attention(model)
    found = trained(model, ids)
    assert_alike(found, wanted)
    handles: list[Any] = [patch, shift] if last == "shift" else [shift, patch]
    for handle in handles:
        handle.remove()
    assert torch.equal(trained(model, ids), unpatched)


def test_a_patch_that_ends_early_leaves_it_shifted() -> None:
    plain, model, ids = tiny_model(), tiny_model(), tokens(48)
    wanted = by_hand(plain, ids, visible(48, 12))
    patch = ropex.patch(model, "yarn:4")
    with shift_attention(model):
        patch.remove()
        assert_alike(trained(model, ids), wanted)


def test_another_attention_is_noticed() -> None:
    model, ids = tiny_model(), tokens(40)
    with shift_attention(model):
        model.set_attn_implementation("eager")
        logits(model.eval(), ids)
        with pytest.raises(RuntimeError, match="attention implementation is eager"):
            trained(model, ids)


REFUSED = "cannot have shifted attention with scaled queries: a group hides"


def test_queries_that_are_scaled_are_refused() -> None:
    model = tiny_model()
    with ropex.patch(model, "logn"), pytest.raises(UnsupportedModel, match=REFUSED):
        shift_attention(model)
    with shift_attention(model), ropex.patch(model, "logn"):
        logits(model.eval(), tokens())
        with pytest.raises(UnsupportedModel, match=REFUSED):
            trained(model, tokens())


@pytest.mark.parametrize(
    ("family", "changes", "attention", "words"),
    [
        ("llama", {}, "eager", "'eager' cannot be shifted"),
        ("mistral", {"sliding_window": 16}, "sdpa", "a sliding window"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
         "sdpa", "sliding_attention"),
        ("stablelm", {}, "sdpa", "attention interface"),
    ],
)  # fmt: skip
def test_attention_that_is_more_is_refused(
    family: str, changes: dict[str, Any], attention: str, words: str
) -> None:
    model = tiny_model(family, **changes)
    model.config._attn_implementation = attention
    config = model.config
    with pytest.raises(UnsupportedModel, match=words):
        shift_attention(model)
    assert model.config is config


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sliding_window"])
def test_what_attention_is_asked_for_besides_is_refused(name: str) -> None:
    model, ids = tiny_model(), tokens(40)
    with shift_attention(model), pytest.raises(UnsupportedModel, match=name):
        trained(model, ids, **{name: 3.0})


def test_refused_while_trying_leaves_nothing_behind() -> None:
    model, ids = tiny_model(), tokens(40)
    plain = trained(model, ids)
    model.model.layers[1].self_attn.is_causal = False
    with pytest.raises(UnsupportedModel, match="later tokens"):
        shift_attention(model)
    model.model.layers[1].self_attn.is_causal = True
    assert torch.equal(trained(model, ids), plain)
    shift_attention(model)


class Silent(nn.Module):
    """A layer that could attend, and does not."""

    is_causal = True

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def test_layer_that_does_not_attend_is_missed() -> None:
    model = tiny_model()
    model.model.layers[1].self_attn = Silent(model.config)
    with pytest.raises(UnsupportedModel, match="1 of 2"):
        shift_attention(model)


def test_layer_whose_forward_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    attention = model.model.layers[1].self_attn
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    with pytest.raises(UnsupportedModel, match="the forward of LlamaAttention was replaced"):
        shift_attention(model)


def test_keys_from_before_are_refused() -> None:
    model, ids = tiny_model(), tokens(40)
    cache = model(ids[:, :20], use_cache=True).past_key_values
    model.train()
    with shift_attention(model), pytest.raises(RuntimeError, match="40 keys for 20 queries"):
        model(ids[:, 20:], past_key_values=cache, use_cache=True)


def test_one_group_and_two_shifts_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="at least 2"):
        shift_attention(model, groups=1)
    with shift_attention(model), pytest.raises(ValueError, match="already"):
        shift_attention(model)


def test_no_query_is_compared_with_keys_of_another_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = tiny_model(), tokens(80, rows=2)
    pairs: list[int] = []
    attend = functional.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        pairs.append(query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2])
        return attend(query, key, *args, **kwargs)

    with shift_attention(model):
        monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
        trained(model, ids)
    # Two layers, two texts; two heads with 4 groups of 20; two with 10, 20, 20, 20 and 10, padded.
    assert sum(pairs) == 2 * 2 * (2 * 4 * 20**2 + 2 * (10**2 + 4 * 20**2))


# peft still asks transformers 5 by the old name.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_and_gradient_checkpointing_train_shifted() -> None:
    from peft import LoraConfig, get_peft_model

    ids = tokens(48)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model: Any = get_peft_model(tiny_model(), lora)
    wanted: dict[str, Tensor] = {}
    with shift_attention(model):
        found = trained(model, ids)
        wanted = {n: g.clone() for n, g in gradients(model, found, ids).items()}
    assert float((found.detach() - logits(model.eval(), ids)).abs().max()) > 0.1
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    with shift_attention(model):
        again = trained(model, ids)
        assert_same_gradients(gradients(model, again, ids), wanted)


def test_dropout_is_passed_on() -> None:
    model, ids = tiny_model(attention_dropout=0.5), tokens(40)
    with shift_attention(model):
        assert not torch.equal(trained(model, ids), trained(model, ids))


def test_saved_config_does_not_name_it(tmp_path: Path) -> None:
    model = tiny_model()
    with shift_attention(model):
        model.save_pretrained(tmp_path)
    assert "ropex" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_vocabulary_that_was_resized_meanwhile_stays() -> None:
    model = tiny_model()
    with shift_attention(model):
        model.resize_token_embeddings(VOCABULARY + 8)
    assert model.config.vocab_size == VOCABULARY + 8
