"""A patched model trains as any other, and what is saved carries the patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import logits, tiny_model, tokens
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import ropex


@pytest.mark.parametrize("text", ["yarn:4", "dynamic:4"])
# accelerate asks for pinned memory, which a machine without an accelerator has none of.
@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_a_patched_model_trains_under_trainer(tmp_path: Path, text: str) -> None:
    model = tiny_model("llama")
    patch = ropex.patch(model, text)
    rows = [{"input_ids": row, "labels": row} for row in tokens(96, rows=8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=3,
        learning_rate=1e-2,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert not torch.equal(before, model.model.layers[0].self_attn.q_proj.weight)
    assert patch.verify().logit_change > 0
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-3").eval()
    ids = tokens()
    assert torch.equal(logits(loaded, ids), logits(model.eval(), ids))


# peft still asks transformers 5 by the old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
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
