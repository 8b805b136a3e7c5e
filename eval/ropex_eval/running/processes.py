"""The processes that share a run, under `accelerate launch` or torchrun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those that share the work.

    Attributes:
        index: Its number.
        count: How many there are.
        device: What it computes on, such as `cuda:1`; None if it may choose.
        wait: Waits until all have come here.
        split: Whether each text is split over them; else each has texts of its own.
        agree: What the first process gives, in all of them, where a text is split: all must read
            the same one.
    """

    index: int
    count: int
    device: str | None
    wait: Callable[[], None]
    split: bool = False
    agree: Callable[[Any], Any] = lambda given: given

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks and writes results."""
        return self.index == 0


def speaks() -> bool:
    """Whether this process is the first of those that a launcher started, or alone."""
    return os.environ.get("RANK", "0") == "0"


ALONE = Processes(0, 1, None, lambda: None)


def launched(split_over: int = 1) -> Processes:
    """The processes that a launcher started, or this one alone.

    Args:
        split_over: How many processes share each text; 1 or all.

    Raises:
        ValueError: There are not as many.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if split_over not in (1, count):
        raise ValueError(
            f"--cp {split_over} wants as many processes, and there are {count}; start it with "
            f"torchrun --nproc-per-node {split_over} -m ropex eval ..., or accelerate launch"
        )
    if count < 2:
        return ALONE
    from accelerate import PartialState

    # Without an accelerator it needs this argument, or each process believes it is alone.
    state = PartialState(cpu=_accelerator() in ("cpu", "mps"))
    # Threads of the group that outlive the interpreter may abort the process as it ends.
    atexit.register(state.destroy_process_group)
    index, device = state.process_index, str(state.device)
    if split_over == 1:
        return Processes(index, count, device, state.wait_for_everyone)
    return Processes(index, count, device, state.wait_for_everyone, True, _of_the_first)


def _of_the_first(given: Any) -> Any:
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([given])[0]


def _accelerator() -> str:
    """The kind of device that processes compute on by default."""
    import torch

    found = torch.accelerator.current_accelerator()
    return found.type if found and torch.accelerator.is_available() else "cpu"
