"""Train the demo checkpoint: `python recipes/demo/train.py --out FOLDER`.

The corpus is the standard library of the Python that runs this script, without the modules held out
for evaluation, so nothing is downloaded. The state is saved regularly; the same
command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muon import Muon
from ropex.patching.saving import both_notations
from ropex.texts.standard_library import training_texts
from rows import FILLER, NAMES, RowSampler

PIECE = 4096  # documents are cut into pieces of this many tokens, so that each weighs the same
SAVE_EVERY = 500  # steps


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token for each digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: dict[str, Any]) -> LlamaForCausalLM:
    """A Llama with untrained weights, from the recipe's seed."""
    torch.manual_seed(recipe["seed"])
    size = recipe["model"]
    config = LlamaConfig(
        vocab_size=size["vocabulary"], hidden_size=size["hidden"], intermediate_size=size["mlp"],
        num_hidden_layers=size["layers"], num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"], head_dim=64,
        max_position_embeddings=recipe["trained_length"], tie_word_embeddings=True, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def build_sampler(recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> RowSampler:
    """Rows over the whole training corpus."""
    data = recipe["data"]

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    pieces = [
        ids[start : start + PIECE]
        for ids in map(encode, training_texts().values())
        for start in range(0, len(ids), PIECE)
    ]
    return RowSampler(
        encode=encode,
        documents=[piece for piece in pieces if len(piece) > 2 * recipe["trained_length"]],
        bos=0,
        vocabulary=recipe["model"]["vocabulary"],
        shares={kind: data[kind] for kind in ("needle", "facts", "copy")},
        answer_weight=data["answer_weight"],
    )


def optimizers(model: LlamaForCausalLM, training: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=training["muon_lr"], momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=training["adamw_lr"], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def loss_of(
    model: LlamaForCausalLM, sampler: RowSampler, rng: random.Random, rows: int, length: int
) -> torch.Tensor:
    """Weighted mean cross-entropy, in nats, of one fresh batch."""
    batch = [sampler.row(rng, length) for _ in range(rows)]
    ids = torch.tensor([row[0] for row in batch])
    weights = torch.tensor([row[1] for row in batch])[:, 1:].flatten()
    logits = model(ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    losses = functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum()


def set_rates(optims: list[torch.optim.Optimizer], part: float, training: dict[str, Any]) -> None:
    """Learning rates after `part` of the tokens: warmup, constant, and decay to zero."""
    warmup, decay = float(training["warmup_part"]), float(training["decay_part"])
    multiplier = min(1.0, part / warmup + 0.01, (1.0 - part) / decay)
    for optim, rate in zip(optims, (training["muon_lr"], training["adamw_lr"]), strict=True):
        for group in optim.param_groups:
            group["lr"] = rate * multiplier


def train(recipe: dict[str, Any], out: Path) -> None:
    """Run the recipe and write the checkpoint to `out`; a saved state is continued."""
    training = recipe["training"]
    corpus = [*training_texts().values(), FILLER * 2000, " ".join(NAMES) * 20]
    tokenizer = train_tokenizer(corpus, recipe["model"]["vocabulary"])
    sampler, model = build_sampler(recipe, tokenizer), build_model(recipe)
    optims = optimizers(model, training)
    step = restore(model, optims, out)
    steps, began = training["tokens"] // training["batch_tokens"], time.time()
    while step < steps:
        part = step / steps
        short = part < training["short_part"]
        length = training["short_length"] if short else recipe["trained_length"]
        set_rates(optims, part, training)
        # Each step draws from its own seed, so that a continued run sees the same rows.
        rng = random.Random(recipe["seed"] * 1_000_003 + step)
        loss = loss_of(model, sampler, rng, training["batch_tokens"] // length, length)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        step += 1
        if step % 100 == 0:
            print(f"{step}/{steps} loss {loss.item():.3f} {time.time() - began:.0f} s", flush=True)
        if step % SAVE_EVERY == 0 or step == steps:
            save(model, tokenizer, optims, step, out)


def restore(model: LlamaForCausalLM, optims: list[torch.optim.Optimizer], out: Path) -> int:
    """Load the state that `save` left in `out`, if any; return the finished steps."""
    if not (out / "state.pt").exists():
        return 0
    state = torch.load(out / "state.pt")
    model.load_state_dict(state["model"])
    for optim, saved in zip(optims, state["optims"], strict=True):
        optim.load_state_dict(saved)
    return int(state["step"])


def save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    optims: list[torch.optim.Optimizer],
    step: int,
    out: Path,
) -> None:
    """Write the state to continue from, and the checkpoint in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optims": [optim.state_dict() for optim in optims],
        "step": step,
    }
    torch.save(state, out / "state.tmp")
    os.replace(out / "state.tmp", out / "state.pt")
    half: Any = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    edit_json(out / "config.json", lambda raw: both_notations(raw, model.config))
    name = {"tokenizer_class": "PreTrainedTokenizerFast"}  # known to transformers 4 and 5
    edit_json(out / "tokenizer_config.json", lambda raw: {**raw, **name})


def edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace what a JSON file holds."""
    content = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--recipe", type=Path, default=here / "recipe.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(yaml.safe_load(arguments.recipe.read_text(encoding="utf-8")), arguments.out)


if __name__ == "__main__":
    main()
