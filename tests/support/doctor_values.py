"""Mutations of single values and of how an entry is written, and the rules that each breaks."""

from __future__ import annotations

from typing import Any

from tests.support.doctor_configs import Config, mutated, scaled

ORIGINAL = "original_max_position_embeddings"
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 16.0, ORIGINAL: 4096}
CARD = "Qwen2.5 7B, YaRN of its card"
LLAMA_31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
INF = float("inf")
HUGE = 10**4000

# Name, config, the rules that it breaks.
BAD_VALUES: tuple[tuple[str, Config, tuple[str, ...]], ...] = (
    ("entry is a text", mutated("Llama 2 7B", "rope_scaling", to="yarn"), ("not-an-entry",)),
    ("entry is a list", mutated("Llama 2 7B", rope_parameters=[1]), ("not-an-entry",)),
    ("no type", scaled(factor=4.0), ("missing-type",)),
    ("unknown type", scaled(rope_type="yran", factor=4.0), ("unknown-type",)),
    ("type of vLLM alone", scaled(type="ntk", factor=4.0), ("unknown-type",)),
    ("type in capitals", scaled(**YARN | {"rope_type": "YaRN"}, ), ("unknown-type",)),
    ("type is a number", scaled(rope_type=4, factor=4.0), ("unknown-type",)),
    ("type is an object", scaled(rope_type={"a": 1}, factor=4.0), ("unknown-type",)),
    ("type is an object, in transformers 5",
     {"model_type": "llama", "rope_parameters": {"rope_theta": 1e4, "rope_type": {"a": 1}}},
     ("unknown-type",)),
    ("two types", scaled(type="linear", **YARN), ("type-keys-disagree",)),
    ("misspelt factor", scaled(rope_type="linear", factr=4.0), ("misspelt-key", "missing-factor")),
    ("misspelt original length",
     scaled(rope_type="yarn", factor=4.0, original_max_position_embedding=4096),
     ("misspelt-key", "missing-original")),
    ("factor is a text", scaled(**YARN | {"factor": "16"}), ("bad-number",)),
    ("factor is a word", scaled(**YARN | {"factor": "four"}), ("bad-number",)),
    ("factor is a list", scaled(rope_type="linear", factor=[4.0]), ("bad-number",)),
    ("factor is true", scaled(rope_type="linear", factor=True), ("bad-number",)),
    ("factor is infinite", scaled(rope_type="linear", factor=INF), ("bad-number",)),
    ("factor is not a number", scaled(rope_type="linear", factor=INF - INF), ("bad-number",)),
    ("factor is huge", scaled(rope_type="linear", factor=HUGE), ("bad-number",)),
    ("factor is zero", scaled(rope_type="linear", factor=0.0), ("bad-number",)),
    ("factor is negative", scaled(rope_type="linear", factor=-4.0), ("bad-number",)),
    ("max is a text", mutated("Llama 3 8B", max_position_embeddings="8192"), ("bad-number",)),
    ("max is negative", mutated("Llama 3 8B", max_position_embeddings=-1), ("bad-number",)),
    ("base is a text", mutated("Qwen3 8B", rope_theta="1e6"), ("bad-number",)),
    ("max is null", mutated("Llama 2 7B", max_position_embeddings=None), ("bad-number",)),
    ("base is null", mutated("Llama 2 7B", rope_theta=None), ("bad-number",)),
    ("base is null, in transformers 5",
     {"model_type": "llama", "rope_parameters": {"rope_theta": None, "rope_type": "default"}},
     ("bad-number",)),
    ("more than all", mutated("GLM 4 9B", partial_rotary_factor=1.5), ("bad-number",)),
    ("more than all, a text", mutated("GLM 4 9B", partial_rotary_factor="1.5"), ("bad-number",)),
    ("more than all, of GPT-NeoX", mutated("Pythia", rotary_pct=1.5), ("bad-number",)),
    ("half, a text", mutated("GLM 4 9B", partial_rotary_factor="0.5"), ("bad-number",)),
    ("truncate is a text", mutated("gpt-oss 20B", "rope_scaling", "truncate", to="false"),
     ("bad-flag",)),
    ("truncate is null", scaled(**YARN, truncate=None), ("bad-flag",)),
    ("integer factor, linear", scaled(rope_type="linear", factor=4), ("integer-factor",)),
    ("float max", mutated("Llama 3 8B", max_position_embeddings=8192.0), ("float-length",)),
    ("half a token", mutated("Llama 3 8B", max_position_embeddings=8192.5), ("float-length",)),
    ("float original", mutated(CARD, "rope_scaling", ORIGINAL, to=32768.0), ("float-length",)),
    ("upside down", scaled(rope_type="linear", factor=0.25), ("factor-below-one",)),
    ("linear without factor", scaled(rope_type="linear"), ("missing-factor",)),
    ("dynamic without factor", scaled(type="dynamic"), ("missing-factor",)),
    ("factor is null", scaled(**YARN | {"factor": None}), ("missing-factor",)),
    ("factor is null, and max raised",
     mutated("Yarn Llama 2 7B 64k", "rope_scaling", "factor", to=None), ("missing-factor",)),
)  # fmt: skip
