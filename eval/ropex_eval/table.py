"""The table behind every number: the NLL of each token, and the definitions read from it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ropex.rope import Rope
from ropex.strategies.base import Strategy

METRICS = ("local", "fixed", "prefix")


@dataclass(frozen=True, eq=False)
class NllTable:
    """Negative log-likelihoods, in nats, of one strategy.

    Attributes:
        prefix: Length of a pass to NLLs of all its targets, `(windows, length - 1)`, float32. One
            pass serves every shorter length of its class.
        fixed: Length to NLLs of the last tokens of each window after the tokens before them,
            `(windows, targets)`, float32.
    """

    prefix: Mapping[int, Tensor]
    fixed: Mapping[int, Tensor]

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the table, atomically, as safetensors."""
        tensors = {f"prefix/{length}": nll for length, nll in self.prefix.items()}
        tensors |= {f"fixed/{length}": nll for length, nll in self.fixed.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(serialise(tensors, metadata))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple[NllTable, dict[str, str]]:
        """Read a table and what was stored with it."""
        parts: dict[str, dict[int, Tensor]] = {"prefix": {}, "fixed": {}}
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # safe_open is not a mapping
                kind, _, length = key.partition("/")
                parts[kind][int(length)] = file.get_tensor(key)
            metadata = file.metadata() or {}
        return cls(parts["prefix"], parts["fixed"]), metadata


def length_classes(strategy: Strategy, rope: Rope, lengths: Sequence[int]) -> list[list[int]]:
    """Lengths grouped so that one pass of the longest of a group serves the whole group.

    Args:
        strategy: Its `length_class` decides.
        rope: Up to whose trained length every strategy has one plan.
        lengths: Lengths to measure, in ascending order.

    Raises:
        ValueError: The model would scale by length in its own way, which depends on what it saw
            before, so that no pass could be repeated.
    """
    if rope.by_length and strategy.native(rope) == {}:
        raise ValueError(
            f"{strategy}: the model's own config scales by length (rope_type dynamic), and its "
            "results depend on earlier texts; take that out of the config and measure the strategy "
            "dynamic, which computes what a fresh model would"
        )
    if strategy.length_class == "static":
        return [list(lengths)]
    short = [length for length in lengths if length <= rope.trained_length]
    long = [length for length in lengths if length > rope.trained_length]
    groups = [short, long] if strategy.length_class == "two" else [short, *([n] for n in long)]
    return [group for group in groups if group]


def mean_nll(table: NllTable, metric: str, length: int, targets: int) -> tuple[float, int]:
    """Mean over tokens, in nats, and the number of tokens, of one definition at one length.

    * `prefix`: all targets of the first `length` tokens of each window.
    * `local`: the last `targets` of these.
    * `fixed`: the last `targets` tokens of each window, read after the `length - targets` tokens
      before them. The same tokens at every length, so that only the context differs.

    Perplexity is `exp` of the mean: a sum over tokens divided by their number, never a mean of
    means.
    """
    values = _VALUES[metric](table, length, targets).double()
    return float(values.mean()), values.numel()


def perplexity(mean: float) -> float:
    """`exp(mean)`, or infinity where that overflows."""
    return math.inf if mean >= 700 else math.exp(mean)


def _prefix(table: NllTable, length: int, targets: int) -> Tensor:
    served_by = min(key for key in table.prefix if key >= length)
    return table.prefix[served_by][:, : length - 1]


def _local(table: NllTable, length: int, targets: int) -> Tensor:
    return _prefix(table, length, targets)[:, -targets:]


def _fixed(table: NllTable, length: int, targets: int) -> Tensor:
    return table.fixed[length] if length in table.fixed else _local(table, length, targets)


_VALUES: dict[str, Callable[[NllTable, int, int], Tensor]] = {
    "prefix": _prefix,
    "local": _local,
    "fixed": _fixed,
}
