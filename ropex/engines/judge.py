"""The judge that `export`, `suggest`, `patch` and the pages ask: one answer for each engine."""

from __future__ import annotations

from pathlib import Path

from ropex.engines import configs
from ropex.engines.answer import Export
from ropex.engines.facts import ENGINES, READERS, TRANSFORMERS, engine_name
from ropex.engines.llama_cpp import for_llama_cpp
from ropex.engines.wanted import Wanted, read


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
    name = engine_name(engine)
    wanted = read(
        folder, strategy, trained_length=trained_length, trust_remote_code=trust_remote_code
    )
    return answer(name, wanted)


def unserved(
    folder: Path, *, trained_length: int | None = None, trust_remote_code: bool = False
) -> list[Export]:
    """The engines that compute something else from a checkpoint as it is, and what each needs.

    Args:
        folder: A checkpoint, as `ropex patch` or `ropex.save` writes it; it is only read.
        trained_length: Tokens that the model was trained at, where its config does not say.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Returns:
        Their answers; with exactness `not expressible` where no export is known to help.

    Raises:
        UnsupportedModel: It has no rotary embedding that ropex can read.
        ValueError: Its config does not say what is needed.
    """
    wanted = read(folder, trained_length=trained_length, trust_remote_code=trust_remote_code)
    return [each for each in exports(wanted) if not each.as_written]


def exports(wanted: Wanted) -> list[Export]:
    """The answers for all engines."""
    return [answer(name, wanted) for name in ENGINES]


def answer(name: str, wanted: Wanted) -> Export:
    """The answer for the engine of this name, one of `ENGINES`."""
    if name in TRANSFORMERS:
        return configs.for_transformers(wanted, int(name[-1]))
    if name in READERS:
        return configs.for_reader(name, wanted)
    return for_llama_cpp(wanted) if name == "llama.cpp" else configs.for_exllama(wanted)
