"""A patched model trains as any other, and what is saved carries the patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Trainer, TrainingArguments

import ropex
from ropex.train import RopeChanged, RopeGuard
from tests.support.configs import LISTED, NATIVE, settings_of
from tests.support.models import TRAINED, logits, plain, rope_settings, tiny_model, tokens

LISTS = f"{LISTED},short_factor=1/1/1/1/1/1/1/1"
ALIKE = {
    text: NATIVE[text] for text in ("linear:4", "linear:1.7", "dynamic:4", "yarn:4", "llama3:4")
}
ALIKE[LISTS] = NATIVE[LISTED]


def gradients(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Of the loss of one text, by the name of the weight."""
    model.train()
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def with_weights(model: Any, weights: dict[str, Tensor]) -> Any:
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "granite"])
@pytest.mark.parametrize("text", ALIKE)
def test_gradients_are_those_of_a_model_that_transformers_scales(kind: str, text: str) -> None:
    model, ids = tiny_model(kind), tokens()
    native = tiny_model(kind, seed=1, **settings_of(ALIKE[text]))
    with_weights(native, model.state_dict())
    wanted = gradients(native, ids)
    assert not same(gradients(model, ids), wanted)
    with ropex.patch(model, text):
        assert same(gradients(model, ids), wanted)
        if text in ("linear:4", "yarn:4", "llama3:4"):  # the others go by what was read before
            short = ids[:, :TRAINED]
            assert same(gradients(model, short), gradients(native, short))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("text", ["mrrope:4", "ntk_by_parts:4", "ntk:2+clip:2"])
def test_gradients_are_those_of_the_checkpoint_that_carries_the_frequencies(
    tmp_path: Path, kind: str, text: str
) -> None:
    model, ids = tiny_model(kind), tokens()
    with ropex.patch(model, text):
        model.save_pretrained(tmp_path)
        found = gradients(model, ids)
    carried = plain(tmp_path)
    assert type(carried.config) is type(model.config)
    assert same(found, gradients(carried, ids))
    assert not same(found, gradients(model, ids))


def test_gradients_under_ntk_are_those_of_the_larger_base() -> None:
    model, ids = tiny_model(), tokens()
    native = with_weights(
        tiny_model(seed=1, **rope_settings(10000.0 * 4 ** (16 / 14))), model.state_dict()
    )
    with ropex.patch(model, "ntk:4"):
        assert same(gradients(model, ids), gradients(native, ids))


def trainer(model: Any, folder: Path, *callbacks: Any) -> Trainer:
    """Four steps with AdamW on texts beyond the trained length; a checkpoint after two."""
    rows = [{"input_ids": row, "labels": row} for row in tokens(96, rows=16)]
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=4, learning_rate=1e-2,
        save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=list(callbacks))


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4", LISTS])
def test_a_training_that_is_resumed_has_the_weights_of_one_that_is_not(
    tmp_path: Path, text: str
) -> None:
    model = tiny_model()
    ropex.patch(model, text)
    before = weights(model)
    trainer(model, tmp_path, RopeGuard(model, text)).train()
    half = tmp_path / "checkpoint-2"

    again = tiny_model(seed=1)
    ropex.patch(again, text)
    resumed = trainer(again, tmp_path / "resumed", RopeGuard(again, text))
    resumed.train(resume_from_checkpoint=str(half))
    assert same(weights(again), weights(model))
    assert not same(weights(model), before)

    loaded, ids = plain(half), tokens()
    assert not same(weights(loaded), weights(model))
    same_weights = with_weights(tiny_model(seed=2), loaded.state_dict())
    unpatched = logits(same_weights, ids)
    with ropex.patch(same_weights, text):
        assert torch.equal(logits(loaded, ids), logits(same_weights, ids))
    assert not torch.equal(logits(loaded, ids), unpatched)


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("resumed", "yarn:4", "under no scaling, and the guard was made for yarn:4"),
        (".", None, "checkpoint-2 was saved under yarn:4, and the model is under no scaling"),
    ],
)
def test_a_training_is_not_resumed_without_its_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, text: str | None, message: str
) -> None:
    model = tiny_model()
    ropex.patch(model, "yarn:4")
    trainer(model, tmp_path, RopeGuard(model, "yarn:4")).train()
    forgotten = tiny_model(seed=1)
    resumed = trainer(forgotten, tmp_path / folder, RopeGuard(forgotten, text))
    losses: list[Any] = []
    monkeypatch.setattr(resumed, "training_step", lambda *given, **named: losses.append(given))
    with pytest.raises(RopeChanged, match=message):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses == []
    assert not (tmp_path / "resumed" / "checkpoint-4").exists()


def loop(model: Any, text: str, spoil: bool = False) -> tuple[dict[str, Tensor], list[float]]:
    """A loop that someone has written with accelerate."""
    ropex.patch(model, text)
    guard = RopeGuard(model, text)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    losses = []
    for ids in tokens(96, rows=12).split(4):
        loss = prepared(input_ids=ids, labels=ids, use_cache=False).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if spoil:
            model.model.rotary_emb.inv_freq.mul_(1 + 1e-5)
        guard.check(prepared)
    return weights(accelerator.unwrap_model(prepared)), losses


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4"])
def test_a_loop_of_ones_own_trains_what_transformers_would(tmp_path: Path, text: str) -> None:
    model = tiny_model()
    found, losses = loop(model, text)
    native = with_weights(
        tiny_model(seed=1, **settings_of(NATIVE[text])), tiny_model().state_dict()
    ).train()
    optimizer = torch.optim.AdamW(native.parameters(), lr=1e-2)
    for ids, wanted in zip(tokens(96, rows=12).split(4), losses, strict=True):
        loss = native(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert float(loss.detach()) == wanted
    assert same(found, weights(native))
    model.save_pretrained(tmp_path)
    loaded = plain(tmp_path)
    assert torch.equal(logits(loaded, tokens()), logits(model.eval(), tokens()))


def test_a_loop_of_ones_own_is_stopped_by_the_guard() -> None:
    with pytest.raises(RopeChanged, match="rotary_emb does not hold the planned frequencies"):
        loop(tiny_model(), "yarn:4", spoil=True)


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4"])
def test_a_patched_model_trains_under_trainer(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    patch = ropex.patch(model, text)
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    trainer(model, tmp_path).train()
    assert not torch.equal(before, model.model.layers[0].self_attn.q_proj.weight)
    assert patch.verify().logit_change > 0
    loaded = plain(tmp_path / "checkpoint-4")
    ids = tokens()
    assert torch.equal(logits(loaded, ids), logits(model.eval(), ids))


@pytest.mark.parametrize("text", ["yarn:4", "yarn:4+logn"])
def test_a_patch_reaches_through_peft(text: str) -> None:
    from peft import LoraConfig, get_peft_model

    plain, ids = tiny_model("llama"), tokens()
    with ropex.patch(plain, text):
        wanted = logits(plain, ids)
    before: Any = tiny_model("llama")
    ropex.patch(before, text)
    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped_after = get_peft_model(before, lora).eval()
    wrapped_before: Any = get_peft_model(tiny_model("llama"), lora).eval()
    unpatched = logits(wrapped_before, ids)
    with ropex.patch(wrapped_before, text) as patch:
        assert torch.equal(logits(wrapped_before, ids), wanted)
        assert patch.verify().logit_change > 0
    assert torch.equal(logits(wrapped_after, ids), wanted)
    assert torch.equal(logits(wrapped_before, ids), unpatched)
