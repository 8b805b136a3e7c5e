"""What to say when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def enough_memory(where: Callable[[], str]) -> Iterator[None]:
    """Tell where memory ran out, and what needs less, in one sentence.

    Raises:
        MemoryError: That of a CPU or an accelerator is too small.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        signs = ("out of memory", "can't allocate memory")  # MPS, CPU: plain errors of torch
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and not any(sign in str(error) for sign in signs):
            raise
        raise MemoryError(f"out of memory {where()}") from error
