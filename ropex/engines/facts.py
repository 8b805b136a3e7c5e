"""Facts about inference engines: what each reads of a config or a GGUF file, and what it misreads.

Data alone, which imports nothing heavy: `readers` and `llama_cpp` compute with it, and `doctor` has
its rules from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from ropex.config.entry import USUAL_BETAS

YarnTemperature: TypeAlias = Literal[
    "attention_factor", "mscale", "both mscales", "nonzero mscales", "attn_factor"
]
"""Where the temperature of a `yarn` entry is read: a key, or the quotient of `mscale` and
`mscale_all_dim` if one of them, both, or two that are not 0 are there."""


@dataclass(frozen=True)
class Engine:
    """An engine that reads config.json, or an override of it: in what it differs from transformers.

    Attributes:
        title: What people call it, in a sentence.
        source: Where what stands here comes from.
        yarn: What gives the temperature of a `yarn` entry, in order; else `0.1 ln(factor) + 1`.
        long_mscale: Whether that of a `longrope` entry is read from `long_mscale`; else it is the
            root of the two lengths.
        refuses: What it makes of a type that it does not compute, in words.
        rounds: Whether the ramp of YaRN is rounded to whole pairs whatever `truncate` says.
        by_lengths: Whether the factor of a `yarn` entry is the quotient of the two lengths.
        long_always: Whether it takes the long list for texts of any length.
        by_text: Whether it takes one list for each text, and not one for all.
        multiplies: Whether the length of a `linear` entry is multiplied by the factor, which must
            not be an integer.
        interleaves: Whether it reads lists for models with interleaved pairs.
        by_position: Whether each token is rotated by the list for its own position.
        whole_heads: Whether it rotates all dimensions of a head, whatever the config says.
    """

    title: str
    source: str
    yarn: tuple[YarnTemperature, ...] = ()
    long_mscale: bool = False
    refuses: dict[str, str] = field(default_factory=dict)
    rounds: bool = False
    by_lengths: bool = False
    long_always: bool = False
    by_text: bool = False
    multiplies: bool = False
    interleaves: bool = True
    by_position: bool = False
    whole_heads: bool = False


TRANSFORMERS = ("transformers5", "transformers4")
ENGINES = (*TRANSFORMERS, "vllm", "sglang", "llama.cpp", "tensorrt-llm", "mlx", "exllama")
"""Engines by the names that they have everywhere: in arguments, tables, findings and answers."""

TRANSFORMERS_SOURCE = "transformers 4.57.6 and 5.23.0, run"
VLLM = Engine(
    "vLLM", "the rotary classes of vLLM 0.33.0, run", ("attention_factor",), long_mscale=True,
    refuses={"dynamic": "does nothing with a `dynamic` factor alone"},
    multiplies=True, interleaves=False,
)  # fmt: skip
SGLANG = Engine(
    "SGLang", "the rotary classes of SGLang 0.5.23, run", ("both mscales", "attn_factor"),
    long_mscale=True, refuses={"dynamic": "takes one base for all lengths, that of the longest"},
    by_text=True, multiplies=True, interleaves=False,
)  # fmt: skip
TENSORRT = Engine(
    "TensorRT-LLM", "TensorRT-LLM's rotary code, read", ("mscale",),
    refuses={"dynamic": "does not know the `dynamic` type"},
    rounds=True, long_always=True, by_position=True,
)  # fmt: skip
MLX = Engine(
    "mlx-lm", "mlx-lm 0.32.2, run with a small Llama", ("mscale",),
    refuses={"dynamic": "works the base out for each call, so that cached keys have another"},
    rounds=True, long_always=True, interleaves=False,
)  # fmt: skip
EXLLAMAV3 = Engine(
    "exllamav3", "exllamav3's rope.py, read", ("attention_factor", "nonzero mscales"),
    refuses={"dynamic": "does not know the `dynamic` type"}, by_lengths=True,
)  # fmt: skip
EXLLAMAV2 = Engine(
    "exllamav2", "exllamav2's config.py and attention code, read",
    refuses={
        "dynamic": "does not know the `dynamic` type",
        "yarn": "counts the turns of YaRN over the new length",
    },
    whole_heads=True,
)  # fmt: skip
READERS = {"vllm": VLLM, "sglang": SGLANG, "tensorrt-llm": TENSORRT, "mlx": MLX}
"""Those by one name; `exllama` is two, and transformers and llama.cpp have tables of their own."""
MULTIPLYING = tuple(name for name, each in READERS.items() if each.multiplies)

# llama.cpp goes by the architecture that a GGUF file names. What stands here is read in its loaders
# and graphs, as of llama-cpp-python 0.3.36; and run, with small models, for llama, granite,
# granitemoe, arcee, apertus, phi3, qwen2, qwen2moe, qwen3, gemma, gemma2, olmo2, starcoder2,
# command-r, stablelm, glm4 and deepseek2.
LLAMA_CPP_SOURCE = (
    "llama.cpp's converter, loaders and graphs, read, and llama-cpp-python 0.3.36, run"
)
LLAMA_CPP_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "granite": "granite",
    "granitemoe": "granitemoe", "apertus": "apertus",
    "exaone": "exaone", "arcee": "arcee", "phi3": "phi3", "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2", "starcoder2": "starcoder2",
    "cohere": "command-r", "cohere2": "cohere2", "gpt_neox": "gptneox", "stablelm": "stablelm",
    "falcon": "falcon", "phi": "phi2", "glm4": "glm4", "internlm2": "internlm2",
    "minicpm": "minicpm", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2",
}  # fmt: skip
"""What its converter calls a `model_type`."""
LLAMA_CPP_FREQS = (
    "llama", "deci", "mistral3", "arcee", "granite", "granitemoe", "minicpm", "exaone", "exaone4",
    "apertus", "nanbeige",
)  # fmt: skip
"""Whose graph hands `rope_freqs.weight` to the rotation. For all but MiniCPM the converter writes
that tensor for the `llama3` type; for no other type does it write one."""
LLAMA_CPP_NO_FREQS = (
    "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo2",
    "starcoder2", "command-r", "cohere2", "gptneox", "stablelm", "falcon", "phi2", "glm4",
    "internlm2", "deepseek2",
)  # fmt: skip
"""Whose loader does not know that tensor, and refuses a file with one more than it knows."""
LLAMA_CPP_LISTS = ("phi3",)
"""Whose graph takes a tensor for short and one for long contexts, which the converter writes."""
LLAMA_CPP_RAMP = ("grok", "mistral3")
"""Whose loader reads `rope.scaling.yarn_beta_fast` and `yarn_beta_slow`; for all others these keys
do nothing, and the flags of that name do it."""
LLAMA_CPP_SLIDING = ("gemma2", "gpt-oss")
"""Whose sliding layers go by the keys of the file, whatever the flags say."""


def own_betas(entry: dict[str, Any]) -> dict[str, float]:
    """The bounds of a `yarn` entry's ramp that are not the usual ones."""
    stated = {name: float(entry.get(name) or usual) for name, usual in USUAL_BETAS.items()}
    return {name: value for name, value in stated.items() if value != USUAL_BETAS[name]}


def engine_name(text: str) -> str:
    """The name in `ENGINES` that is meant, whatever the case of its letters.

    Raises:
        ValueError: There is no such engine.
    """
    if text.casefold() not in ENGINES:
        raise ValueError(f"unknown engine {text!r}; known: {', '.join(ENGINES)}")
    return text.casefold()
