"""Greedy pass-key accuracy of the demo checkpoint: `python recipes/demo/passkey.py CHECKPOINT`.

One five-digit number is hidden in text that the model was not trained on, at five depths, and asked
for at the end. An answer counts if the model finds all five digits most likely.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import yaml

import ropex
from ropex.checkpoints.loading import load_model, load_tokenizer
from ropex.texts.standard_library import held_out_files
from rows import RowSampler

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


@torch.no_grad()
def accuracy(model: Any, sampler: RowSampler, length: int, trials: int) -> float:
    """Share of right answers over `trials` prompts of `length` tokens at each depth."""
    right = 0
    for trial in range(trials):
        for depth in DEPTHS:
            ids, weights = sampler.needle(random.Random(trial), length, depth)
            places = [i for i, weight in enumerate(weights) if weight > 1][:6]  # blank and digits
            logits = model(torch.tensor([ids]), use_cache=False).logits[0]
            right += all(int(logits[i - 1].argmax()) == ids[i] for i in places)
    return right / (trials * len(DEPTHS))


def main() -> None:
    """Print a table: strategies down, lengths across."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048])
    arguments = parser.parse_args()
    tokenizer, model = load_tokenizer(arguments.checkpoint), load_model(arguments.checkpoint)
    model = model.float()
    recipe = yaml.safe_load((Path(__file__).parent / "recipe.yaml").read_text(encoding="utf-8"))

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    texts = [encode(path.read_text(encoding="utf-8")) for path in held_out_files()]
    sampler = RowSampler(encode, texts, tokenizer.bos_token_id, len(tokenizer), {},
                         recipe["data"]["answer_weight"])  # fmt: skip
    print("strategy", *arguments.lengths, sep="\t")
    for name in ("none", "linear", "ntk", "llama3", "yarn"):
        row = []
        for length in arguments.lengths:
            factor = length / recipe["trained_length"]
            text = name if name == "none" else f"{name}:{factor:g}"
            with ropex.patch(model, text):
                row.append(f"{accuracy(model, sampler, length, arguments.trials):.0%}")
        print(name, *row, sep="\t", flush=True)


if __name__ == "__main__":
    main()
