"""One answer for each engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ropex.engines import configs
from ropex.engines.answer import Export
from ropex.engines.llama_cpp import for_llama_cpp
from ropex.engines.wanted import Wanted, read

ENGINES: dict[str, Callable[[Wanted], Export]] = {
    "transformers5": lambda wanted: configs.for_transformers(wanted, 5),
    "transformers4": lambda wanted: configs.for_transformers(wanted, 4),
    "vllm": configs.for_vllm,
    "sglang": configs.for_sglang,
    "llama.cpp": for_llama_cpp,
    "tensorrt-llm": configs.for_tensorrt,
    "mlx": configs.for_mlx,
    "exllama": configs.for_exllama,
}
"""What answers for an engine, by its name."""


def export(
    folder: Path,
    engine: str,
    strategy: str | None = None,
    *,
    trained_length: int | None = None,
    trust_remote_code: bool = False,
) -> Export:
    """What an engine needs to compute the rotary embedding of a checkpoint.

    Args:
        folder: A checkpoint: as `ropex patch` writes it, or any other. It is only read.
        engine: One of `ENGINES`.
        strategy: Apply this to it first, without writing a checkpoint.
        trained_length: Tokens that the model was trained at, where its config does not say.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        UnsupportedModel: It has no rotary embedding that ropex can read.
        ValueError: There is no such engine, or the strategy does not fit.
    """
    answer = named(engine)
    options = {"trained_length": trained_length, "trust_remote_code": trust_remote_code}
    return answer(read(folder, strategy, **options))  # type: ignore[arg-type]


def exports(wanted: Wanted) -> list[Export]:
    """The answers for all engines."""
    return [answer(wanted) for answer in ENGINES.values()]


def named(engine: str) -> Callable[[Wanted], Export]:
    """What answers for an engine.

    Raises:
        ValueError: There is no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    return ENGINES[engine]
