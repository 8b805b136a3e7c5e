"""Which inference engines compute what a strategy writes into a config, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ropex.config.entry import USUAL_BETAS

Verdict: TypeAlias = Literal["yes", "part", "no"]
"""`part`: under a condition, or with a part of the method left out; the note says which."""

ENGINES = ("transformers", "vLLM", "SGLang", "llama.cpp")

# llama.cpp goes by the architecture that a GGUF file names. What stands here is read in its loaders
# and graphs, as of llama-cpp-python 0.3.36; and run, with small models, for llama, granite,
# granitemoe, arcee, apertus, phi3, qwen2, qwen2moe, qwen3, gemma, gemma2, olmo2, starcoder2,
# command-r, stablelm, glm4 and deepseek2.
LLAMA_CPP_FREQS = (
    "llama", "deci", "mistral3", "arcee", "granite", "granitemoe", "minicpm", "exaone", "exaone4",
    "apertus", "nanbeige",
)  # fmt: skip
"""Whose graph hands `rope_freqs.weight` to the rotation."""
LLAMA_CPP_NO_FREQS = (
    "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo2",
    "starcoder2", "command-r", "cohere2", "gptneox", "stablelm", "falcon", "phi2", "glm4",
    "internlm2", "deepseek2",
)  # fmt: skip
"""Whose loader does not know that tensor, and refuses a file with one more than it knows."""
LLAMA_CPP_LISTS = ("phi3",)
"""Whose graph takes a tensor for short and one for long contexts."""
LLAMA_CPP_RAMP = ("grok", "mistral3")
"""Whose loader reads `rope.scaling.yarn_beta_fast` and `yarn_beta_slow`; for all others these keys
do nothing, and the flags of that name do it."""
LLAMA_CPP_SLIDING = ("gemma2", "gpt-oss")
"""Whose sliding layers go by the keys of the file, whatever the flags say."""


@dataclass(frozen=True)
class Service:
    """What one engine makes of one kind of config entry.

    Attributes:
        verdict: Whether it computes the same.
        note: Under which condition, or what it does instead; may be empty.
    """

    verdict: Verdict
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict} ({self.note})" if self.note else self.verdict


@dataclass(frozen=True)
class Encoding:
    """How a strategy stands in a config, and what each engine makes of it.

    Attributes:
        what: What is written, in words.
        services: One for each of `ENGINES`.
        source: Where the statements on engines come from.
    """

    what: str
    services: tuple[Service, ...]
    source: str

    def by_engine(self) -> dict[str, Service]:
        """Services by the name of the engine."""
        return dict(zip(ENGINES, self.services, strict=True))


_YES, _NO = Service("yes"), Service("no")
_RUN = (
    "transformers 4.57.6 and 5.23.0, and the rotary classes of vLLM 0.33.0 and SGLang 0.5.23, run"
)
_READ = "llama.cpp's convert_hf_to_gguf.py, read"
_STATIC_THERE = "one base for all lengths, that of the longest"
_TENSOR = "needs a rope_freqs.weight tensor, which its converter does not write for this type"
_RAMP = "rounds the ramp, and takes its betas from flags or a rope_freqs.weight tensor alone"
_NO_TEMPERATURE = "leaves the temperature out, unless short_mscale and long_mscale are written"

_ENCODINGS = {
    "default": Encoding("`rope_theta`, a larger base", (_YES,) * 4, f"{_RUN}; {_READ}"),
    "linear": Encoding(
        "the `linear` type",
        (
            _YES,
            _YES,
            _YES,
            Service("part", "its server stops at the trained length unless told otherwise"),
        ),
        f"{_RUN}; {_READ}",
    ),
    "llama3": Encoding(
        "the `llama3` type",
        (_YES, _YES, _YES, Service("part", "only in models built like Llama (Llama, Mistral)")),
        f"{_RUN}; {_READ}",
    ),
    "yarn": Encoding("the `yarn` type", (_YES,) * 4, f"{_RUN}; {_READ}"),
    "yarn, other ramp": Encoding(
        "the `yarn` type with a ramp of its own",
        (_YES, _YES, _YES, Service("part", _RAMP)),
        f"{_RUN}; llama.cpp's model loaders, read, and llama-cpp-python 0.3.36, run",
    ),
    "yarn, other ramp and temperature": Encoding(
        "the `yarn` type with a ramp and a temperature of its own",
        (
            _YES,
            _YES,
            Service("part", "ignores attention_factor"),
            Service("part", f"takes the usual temperature, and {_RAMP}"),
        ),
        f"{_RUN}; llama.cpp's model loaders, read, and llama-cpp-python 0.3.36, run",
    ),
    "yarn, other temperature": Encoding(
        "the `yarn` type with a temperature of its own",
        (
            _YES,
            _YES,
            Service("part", "ignores attention_factor"),
            Service("part", "takes the usual temperature"),
        ),
        f"{_RUN}; llama.cpp's model loader, read",
    ),
    "proportional": Encoding(
        "the `proportional` type",
        (
            Service("part", "from version 5 on"),
            Service("part", "for Gemma 4; not tried"),
            Service("part", "for Gemma 4; not tried"),
            _NO,
        ),
        "transformers 5.23.0, run",
    ),
    "dynamic": Encoding(
        "the `dynamic` type",
        (
            Service("part", "a result also depends on the longest text before it"),
            Service("no", "does nothing with a factor alone"),
            Service("part", _STATIC_THERE),
            _NO,
        ),
        f"{_RUN}; {_READ}",
    ),
    "list": Encoding(
        "a `longrope` list that carries the frequencies",
        (
            _YES,
            Service("part", "not for interleaved pairs"),
            Service("part", "not for interleaved pairs"),
            Service("no", _TENSOR),
        ),
        f"{_RUN}; {_READ}",
    ),
    "list, temperature": Encoding(
        "a `longrope` list that carries the frequencies and the temperature",
        (
            _YES,
            Service("part", _NO_TEMPERATURE),
            Service("part", _NO_TEMPERATURE),
            Service("no", _TENSOR),
        ),
        f"{_RUN}; {_READ}",
    ),
    "two lists": Encoding(
        "the `longrope` type, with a list for short and one for long sequences",
        (
            _YES,
            Service("part", "one list for all requests; computes the temperature itself"),
            Service("part", "a list for each batch; computes the temperature itself"),
            Service("part", "Phi-3 and MiniCPM only; one list for all requests"),
        ),
        f"{_RUN}; {_READ}",
    ),
    "unchanged": Encoding("nothing, as the config stays as it is", (_YES,) * 4, "no change"),
    "none": Encoding(
        "nothing, as no config can say it",
        (Service("part", "with ropex, after loading the model"), _NO, _NO, _NO),
        "the rope types of transformers 5.23.0, vLLM 0.33.0 and SGLang 0.5.23",
    ),
}


def encoding(entry: dict[str, Any] | None) -> Encoding:
    """What engines make of a config entry.

    Args:
        entry: As it is written (`model.realise.Native.entry`); empty if nothing needs to be, None
            if nothing can.
    """
    if entry is None:
        return _ENCODINGS["none"]
    return _ENCODINGS[_kind(entry) if entry else "unchanged"]


_YARN = {
    (False, False): "yarn",
    (False, True): "yarn, other temperature",
    (True, False): "yarn, other ramp",
    (True, True): "yarn, other ramp and temperature",
}


def has_ramp(entry: dict[str, Any]) -> bool:
    """Whether a `yarn` entry has a ramp of its own: other bounds, or such that are not rounded."""
    return bool(own_betas(entry)) or entry.get("truncate", True) is False


def own_betas(entry: dict[str, Any]) -> dict[str, float]:
    """The bounds of a `yarn` entry's ramp that are not the usual ones."""
    told = {name: float(entry.get(name) or usual) for name, usual in USUAL_BETAS.items()}
    return {name: value for name, value in told.items() if value != USUAL_BETAS[name]}


def _kind(entry: dict[str, Any]) -> str:
    rope_type = str(entry["rope_type"])
    if rope_type == "yarn":
        temperature = bool({"attention_factor", "mscale"} & entry.keys())
        return _YARN[has_ramp(entry), temperature]
    if rope_type != "longrope":
        return rope_type
    if entry["short_factor"] != entry["long_factor"]:
        return "two lists"
    plain = entry.get("attention_factor") == 1 or "long_mscale" in entry
    return "list" if plain else "list, temperature"
