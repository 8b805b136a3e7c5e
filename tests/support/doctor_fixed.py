"""The mutations that need no person to decide: nothing is left once they are fixed."""

from __future__ import annotations

FIXED = frozenset({
    "type in capitals", "misspelt factor", "misspelt original length", "factor is a text",
    "max is a text", "base is a text", "half, a text", "truncate is a text", "lists swapped",
    "base of gpt-oss null", "base of Gemma 3 at 10000",
    "base of Gemma 3 at 10000, in transformers 5", "scaling without a type beside one with it",
    "integer factor, linear", "float max", "float original", "factor is null, and max raised",
    "betas swapped", "llama3 with a swapped ramp", "base of Llama 3 lost",
    "base of Llama 3 at 10000", "base of Yi at 10000", "base of Qwen3 lost",
    "base of Nemo at 10000", "base of gpt-oss lost", "base lost in one notation",
    "yarn with original at the root", "two originals, one fits the factor",
    "longrope, original in the entry alone",
    "llama3 of another length, original in the entry alone", "dynamic with a raised max",
    "linear with a raised max", "null head_dim", "attention factor",
    "attention factor against the pair", "R1 0528 Qwen3 8B, as published",
    "attention factor of longrope", "saved by transformers 5", "yarn, saved by transformers 5",
    "Phi 2, saved by transformers 5", "a layer type with scaling, saved by transformers 5",
    "a part, saved by transformers 5", "scaling added to a config of transformers 5", "two factors",
    "more keys than Phi-3 takes", "misspelt rope_scaling", "rope-scaling beside null",
    "rope_scaling in capitals", "misspelt length", "misspelt base",
    "misspelt entry of transformers 5", "misspelt in a part", "scaling of Gemma 3 at the root",
    "misspelt, and at the root", "one entry for all layers of Gemma 3",
    "equal entries by layer on Llama", "entries by layer in rope_scaling",
})  # fmt: skip
