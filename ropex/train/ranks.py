"""Communication between the processes of a training run; works with one process too.

Each function is a collective: all ranks must call it together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The values of all ranks, in the order of ranks.

    Args:
        value: Of this rank; small, as it is pickled.
    """
    if not _several():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def of_first(value: T) -> T:
    """The value of rank 0, on all ranks.

    Args:
        value: Of this rank; small, as it is pickled.
    """
    if not _several():
        return value
    given: list[Any] = [value]
    dist.broadcast_object_list(given, src=0)
    first: T = given[0]
    return first


def by_first(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only, and return its result on all ranks.

    Args:
        function: Returns something small.

    Raises:
        OSError: It raised that on rank 0; then all ranks raise it, and none is left waiting.
        ValueError: Likewise.
    """
    found: Any = None
    error: Exception | None = None
    if not _several() or dist.get_rank() == 0:
        try:
            found = function()
        except (OSError, ValueError) as raised:
            error = raised
    found, error = of_first((found, error))
    if error is not None:
        raise error
    given: T = found
    return given


def agreed(problem: str | None) -> str | None:
    """The first problem that any rank has, in the same words on all of them.

    So all ranks can raise it, and none is left waiting for a stopped one.

    Args:
        problem: Of this rank, in one sentence; None if it has none.

    Returns:
        The sentence, with the rank where there are several; None if no rank has a problem.
    """
    found = gathered(problem)
    told = (f"rank {rank} of {len(found)}: {text}" for rank, text in enumerate(found) if text)
    return next(told, None) if len(found) > 1 else problem


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
