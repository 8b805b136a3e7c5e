"""Mutations of the corpus, and the rules that each of them breaks."""

from __future__ import annotations

from tests.support.doctor_configs import GOOD, Config, mutated, scaled
from tests.support.doctor_published import MISPLACED, UNPUBLISHED
from tests.support.doctor_values import BAD_VALUES, CARD, LLAMA_31, ORIGINAL, YARN

BOTH = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
LISTS = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
PHI_3 = GOOD["Phi 3 mini 128k"]["rope_scaling"]
LLAMA_31_SCALING = GOOD["Llama 3.1 8B"]["rope_scaling"]
UNTYPED = {key: value for key, value in LLAMA_31_SCALING.items() if key != "rope_type"}
LONG = {"rope_type": "longrope", ORIGINAL: 4096, **LISTS}


def five(theta: float = 5e5, **entry: object) -> Config:
    """Llama 3 as transformers 5 alone writes it."""
    entry = {"rope_type": "default", "rope_theta": theta, **entry}
    config = mutated("Llama 3 8B", rope_parameters=entry)
    return {
        key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")
    }


# Name, config, the rules that it breaks.
BAD: tuple[tuple[str, Config, tuple[str, ...]], ...] = (
    *BAD_VALUES,
    *MISPLACED,
    *UNPUBLISHED,
    ("factor of a default", scaled(rope_type="default", factor=4.0), ("scaling-off",)),
    ("betas swapped", scaled(**YARN, beta_fast=1.0, beta_slow=32.0), ("swapped-betas",)),
    ("beta_slow above the usual", scaled(**YARN, beta_slow=64.0), ("swapped-betas",)),
    ("llama3 without its ramp",
     mutated("Llama 3.1 8B", "rope_scaling", "low_freq_factor", remove=True), ("llama3-bands",)),
    (
        "llama3 with a swapped ramp",
        mutated("Llama 3.1 8B", "rope_scaling",
            to=LLAMA_31 | {"low_freq_factor": 4.0, "high_freq_factor": 1.0, ORIGINAL: 8192}),
        ("llama3-bands",),
    ),
    ("short list", mutated("Phi 4 mini", "partial_rotary_factor", to=1.0), ("longrope-lists",) * 2),
    ("no long list", mutated("Phi 3 mini 128k", "rope_scaling", "long_factor", remove=True),
     ("longrope-lists",)),
    ("a text in the list",
     mutated("Phi 3 mini 128k", "rope_scaling", "long_factor", to=["1.0"] * 48),
     ("longrope-lists",)),
    ("lists of two lengths", {"model_type": "x", "rope_scaling": LONG | {"long_factor": [1.0] * 3}},
     ("longrope-lists", "original-at-root")),
    (
        "longrope with a factor of its own",
        mutated("Llama 2 7B", max_position_embeddings=16384, rope_scaling=LONG | {"factor": 8.0},
                **{ORIGINAL: 4096}),
        ("longrope-factor",),
    ),
    (
        "lists swapped",
        mutated("Phi 3 mini 128k", rope_scaling=PHI_3 | {
            "short_factor": PHI_3["long_factor"], "long_factor": PHI_3["short_factor"],
        }),
        ("swapped-lists",),
    ),
    ("base of Llama 3 lost", mutated("Llama 3 8B", "rope_theta", remove=True), ("family-base",)),
    ("base of Llama 3 at 10000", mutated("Llama 3.1 8B", rope_theta=1e4), ("family-base",)),
    ("base of Yi at 10000", mutated("Yi 34B 200k", rope_theta=1e4), ("family-base",)),
    ("base of Qwen3 lost", mutated("Qwen3 8B", "rope_theta", remove=True), ("family-base",)),
    ("base of Nemo at 10000", mutated("Mistral Nemo", rope_theta=1e4), ("family-base",)),
    ("base of gpt-oss lost", mutated("gpt-oss 20B", "rope_theta", remove=True), ("family-base",)),
    ("base of gpt-oss null", mutated("gpt-oss 20B", rope_theta=None),
     ("bad-number", "family-base")),
    ("base of Gemma 3 at 10000", mutated("Gemma 3 1B", rope_theta=1e4), ("family-base",)),
    (
        "base of Gemma 3 at 10000, in transformers 5",
        mutated("Gemma 3 1B, both notations", "rope_parameters", "full_attention", "rope_theta",
                to=1e4, rope_theta=1e4),
        ("family-base",),
    ),
    ("Llama 3.1 unscaled", mutated("Llama 3.1 8B", rope_scaling=None), ("family-scaling",)),
    ("Llama 3.2 unscaled", mutated("Llama 3.2 1B", "rope_scaling", remove=True),
     ("family-scaling",)),
    ("Llama 3.1 unscaled, saved by transformers 5",
     five() | {"max_position_embeddings": 131072}, ("family-scaling", "one-notation")),
    ("base lost in one notation",
     mutated("Llama 3 8B", rope_theta=1e4, rope_parameters={"rope_theta": 5e5}),
     ("family-base", "notations-disagree")),
    ("yarn without original", mutated(CARD, "rope_scaling", ORIGINAL, remove=True),
     ("missing-original",)),
    ("yarn with original at the root", scaled(rope_type="yarn", factor=4.0) | {ORIGINAL: 4096},
     ("missing-original",)),
    ("llama3 without original", mutated("Llama 3.1 8B", "rope_scaling", to=LLAMA_31),
     ("missing-original",)),
    ("two originals", mutated(CARD, **{ORIGINAL: 131072}), ("original-disagrees",)),
    ("two originals, one fits the factor", mutated("Yarn Llama 2 7B 64k", **{ORIGINAL: 65536}),
     ("original-disagrees",)),
    ("lengths swapped", mutated(CARD, "rope_scaling", ORIGINAL, to=131072),
     ("original-above-max",)),
    ("llama3 with the scaled length for the trained one",
     mutated("Llama 3.1 8B", "rope_scaling", ORIGINAL, to=131072), ("original-above-max",)),
    ("longrope, original in the entry alone",
     mutated("Llama 2 7B", rope_scaling=LONG, max_position_embeddings=16384),
     ("original-at-root",)),
    ("llama3 of another length, original in the entry alone",
     mutated("Llama 3.1 8B", "rope_scaling", ORIGINAL, to=4096), ("original-at-root",)),
    ("factor too small", mutated("Yarn Llama 2 7B 64k", "rope_scaling", "factor", to=8.0),
     ("max-beyond-scaling",)),
    ("factor too small, gpt-oss", mutated("gpt-oss 20B", max_position_embeddings=1048576),
     ("max-beyond-scaling",)),
    ("dynamic with a raised max",
     scaled(rope_type="dynamic", factor=4.0) | {"max_position_embeddings": 16384, ORIGINAL: 4096},
     ("raised-max",)),
    ("linear with a raised max",
     scaled(type="linear", factor=4.0, **{ORIGINAL: 4096}) | {"max_position_embeddings": 16384},
     ("raised-max",)),
    ("window below the scaled length",
     mutated("Mistral 7B v0.1", rope_scaling=YARN | {ORIGINAL: 32768}), ("sliding-window",)),
    ("window of Phi-3", mutated("Phi 3 mini 128k", sliding_window=2047), ("sliding-window",)),
    ("null head_dim", mutated("Mixtral 8x7B", head_dim=None, rope_scaling=YARN | {ORIGINAL: 32768}),
     ("head-dim-null",)),
    ("attention factor", scaled(**YARN, attention_factor=1.0), ("yarn-attention",)),
    ("attention factor that mscale cannot say", scaled(**YARN, attention_factor=1e-320),
     ("yarn-attention",)),
    ("attn_factor that mscale cannot say", scaled(**YARN, attn_factor=1e-320), ("attn-factor",)),
    ("attention factor against the pair",
     scaled(**YARN, attention_factor=1.25, mscale=1.0, mscale_all_dim=1.0), ("yarn-attention",)),
    (
        "R1 0528 Qwen3 8B, as published",
        mutated("Qwen3 8B", max_position_embeddings=131072, rope_scaling=YARN | {
            "factor": 4.0, ORIGINAL: 32768, "attn_factor": 0.8782488562869419,
        }),
        ("attn-factor",),
    ),
    ("two attention factors", scaled(**YARN, attention_factor=1.0, attn_factor=0.5),
     ("attn-factor",)),
    ("half of the pair", scaled(**YARN, mscale=0.707), ("half-mscale",)),
    ("other half of the pair", scaled(**YARN, mscale_all_dim=0.707), ("half-mscale",)),
    ("attention factor of longrope",
     mutated("Llama 2 7B", rope_scaling=LONG | {"attention_factor": 1.1}), ("longrope-attention",)),
    ("saved by transformers 5", five(), ("one-notation",)),
    ("yarn, saved by transformers 5", five(**YARN | {ORIGINAL: 8192}), ("one-notation",)),
    (
        "Phi 2, saved by transformers 5",
        {"model_type": "phi", "max_position_embeddings": 2048, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4,
        }},
        ("one-notation",),
    ),
    (
        "a layer type with scaling, saved by transformers 5",
        {"model_type": "gemma3_text", "rope_parameters": BOTH | {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0}
        }},
        ("one-notation",),
    ),
    ("a part, saved by transformers 5", {"model_type": "llava", "text_config": five()},
     ("one-notation",)),
    ("scaled in one notation alone",
     mutated("Llama 3 8B", rope_parameters=YARN | {"rope_theta": 5e5, ORIGINAL: 8192}),
     ("notations-disagree",)),
    (
        "scaling added to a config of transformers 5",
        mutated("Llama 3 8B", rope_scaling=YARN | {ORIGINAL: 8192},
                rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        ("notations-disagree",),
    ),
    (
        "scaling without a type beside one with it",
        mutated("Llama 3.1 8B", rope_scaling=UNTYPED,
                rope_parameters=LLAMA_31_SCALING | {"rope_theta": 5e5}),
        ("missing-type", "notations-disagree"),
    ),
    (
        "scaling without a type beside another",
        mutated("Llama 3.1 8B", rope_scaling=UNTYPED | {"factor": 4.0},
                rope_parameters=LLAMA_31_SCALING | {"rope_theta": 5e5}),
        ("missing-type", "notations-disagree"),
    ),
    (
        "scaling of no known type beside another",
        mutated("Llama 3.1 8B", rope_scaling={"type": "ntk", "factor": 8.0},
                rope_parameters=LLAMA_31_SCALING | {"rope_theta": 5e5}),
        ("unknown-type", "notations-disagree"),
    ),
    (
        "two factors",
        scaled(**YARN) | {"rope_theta": 1e4,
            "rope_parameters": YARN | {"factor": 8.0, "rope_theta": 1e4}},
        ("notations-disagree",),
    ),
    ("two bases of windows", mutated("Gemma 3 1B, both notations", rope_local_base_freq=1e6),
     ("notations-disagree",)),
    ("more keys than Phi-3 takes",
     mutated("Phi 3 mini 128k", "rope_scaling", "rope_type", to="longrope"),
     ("two-type-keys", "surplus-keys")),
    ("another type than OLMo 2 takes", mutated("OLMo 2 7B", rope_scaling=YARN),
     ("surplus-keys", "refused-by-4")),
    ("scaling that Nemotron ignores", mutated("Minitron", rope_scaling=YARN), ("refused-by-4",)),
)  # fmt: skip
