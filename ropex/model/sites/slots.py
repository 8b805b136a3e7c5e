"""Where a rotary module keeps a table of frequencies, and how the module is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropex.config.entry import read_entries, read_entry
from ropex.config.notations import each_entry, version_5
from ropex.model.tables import Native


@dataclass(frozen=True)
class Slot:
    """One `inv_freq` of a rotary module, which has several if types of layers rotate differently.

    A slot holds no module, so that hooks which hold slots can be copied along with a model.

    Attributes:
        layer_type: The layers that ask for it; empty where all do.
        scales: Whether the module multiplies cos and sin by its `attention_scaling`.
        by_positions: Whether it is called with `position_ids`, and not with a length.
    """

    layer_type: str = ""
    scales: bool = True
    by_positions: bool = True

    def name(self, attribute: str) -> str:
        """What the module calls an attribute of this table."""
        return f"{self.layer_type}_{attribute}" if self.layer_type else attribute

    def asked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call of the module is for this table."""
        if not self.layer_type:
            return True
        return bool(kwargs.get("layer_type", args[2] if len(args) > 2 else "") == self.layer_type)

    def table(self, module: Any) -> Tensor:
        """The live frequencies, `(dim // 2,)`."""
        table: Tensor = getattr(module, self.name("inv_freq"))
        return table

    def scale(self, module: Any) -> float:
        """What cos and sin are multiplied by."""
        return float(getattr(module, self.name("attention_scaling"), 1.0))

    def at(self, module: Any, length: int) -> tuple[Tensor, float]:
        """What the module computes with for a sequence of `length` tokens."""
        x = torch.zeros(1, 1, 1, device=self.table(module).device)
        self.ask(module, x, length)
        # transformers 5 writes the next one of a longrope entry into the same tensor.
        return self.table(module).detach().clone(), self.scale(module)

    def rope_type(self, module: Any) -> str:
        """The type that the module goes by."""
        kind: Any = getattr(module, "rope_type", "default")
        return str(kind[self.layer_type] if self.layer_type else kind)

    def holds(self, module: Any, table: Tensor) -> bool:
        """Whether the module computes with this very tensor."""
        return getattr(module, self.name("inv_freq")) is table

    def put(self, module: Any, table: Tensor, scale: Any) -> None:
        """Let the module compute with these."""
        setattr(module, self.name("inv_freq"), table)
        setattr(module, self.name("attention_scaling"), scale)

    def attributes(self, module: Any, native: Native, table: Tensor, length: int) -> dict[str, Any]:
        """What to set on a module that computes `native`, so that nothing in it contradicts."""
        kind = self.settled_type(module, native)
        types = {**module.rope_type, self.layer_type: kind} if self.layer_type else kind
        return {
            self.name("inv_freq"): table,
            # Its own storage: transformers 4 has one for both, and would see changes to either.
            self.name("original_inv_freq"): table.clone(),
            "rope_type": types,
            self.name("attention_scaling"): native.attention_scale,
            "max_seq_len_cached": length,
            "original_max_seq_len": length,
        }

    def settled_type(self, module: Any, native: Native) -> str:
        """A rope type by which the module does not update its table."""
        if native.table_at is not None:
            # torch.compile notices a new type, but no new hooks.
            return "proportional" if self.rope_type(module) == "default" else "default"
        kind: str = "longrope" if native.entry is None else native.entry["rope_type"]
        return "default" if kind == "longrope" else kind

    def settle(self, config: Any, native: Native) -> None:
        """Leave no number in a patch's own config that the module would read against `native`."""
        return

    def beside_lists(self, scale: float) -> dict[str, Any]:
        """Keys that the module wants in a `longrope` entry."""
        return {}

    def ask(self, module: Any, x: Tensor, length: int) -> Any:
        """What the module, its hooks and all, returns for the last of `length` positions."""
        which = {"layer_type": self.layer_type} if self.layer_type else {}
        if not self.by_positions:
            return module(x, seq_len=torch.tensor(length))
        positions = torch.tensor([[0, length - 1]], device=x.device)
        if has_axes(module):
            positions = positions.expand(3, 1, 2)
        return module(x, position_ids=positions, **which)

    def call(self, module: Any, x: Tensor, positions: Tensor) -> Any:
        """What the module returns, its hooks left out."""
        output = module.forward(x, positions, *filter(None, [self.layer_type]))
        if self.scales or self.scale(module) == 1:
            return output
        return tuple(part * self.scale(module) for part in output)

    def length(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Tokens that a call of the module reaches, 0-dimensional."""
        if self.by_positions:
            return positions_of(args, kwargs).max() + 1
        return torch.as_tensor(kwargs["seq_len"] if "seq_len" in kwargs else args[1])


@dataclass(frozen=True)
class FunctionSlot(Slot):
    """A module that asks its `rope_init_fn` in each call, whatever its buffer holds (PhiMoE)."""

    def table(self, module: Any) -> Tensor:
        """What the function gives."""
        table: Tensor = module.rope_init_fn(module.config, device=None)[0]
        return table

    def scale(self, module: Any) -> float:
        """What the function gives; the lists of `longrope` have factors beside them."""
        entry = read_entry(module.config)
        if entry["rope_type"] != "default":
            return float(entry["long_mscale"])
        return float(module.rope_init_fn(module.config, device=None)[1])

    def at(self, module: Any, length: int) -> tuple[Tensor, float]:
        """What the function gives, and the factor beside its list."""
        entry, given = read_entry(module.config), {} if self.by_positions else {"seq_len": length}
        table: Tensor = module.rope_init_fn(module.config, device=None, **given)[0]
        if entry["rope_type"] == "default":
            return table, self.scale(module)
        long = length > entry["original_max_position_embeddings"]
        return table, float(entry["long_mscale" if long else "short_mscale"])

    def attributes(self, module: Any, native: Native, table: Tensor, length: int) -> dict[str, Any]:
        """A function in the place of the module's own, and no factors of its lists."""
        given = {"rope_init_fn": Given(table, native.attention_scale)}
        factors = self.factors(read_entry(module.config), native)
        return {**given, **factors, "rope_type": self.settled_type(module, native)}

    def settle(self, config: Any, native: Native) -> None:
        """The factors of `native` in a config with lists, where transformers 5 reads them."""
        entry = read_entry(config)
        if entry["rope_type"] != "default" and version_5():
            config.rope_parameters = {**entry, **self.factors(entry, native)}

    def factors(self, entry: dict[str, Any], native: Native) -> dict[str, Any]:
        """What cos and sin are multiplied by, on both sides of the switch in the config."""
        short = long = native.attention_scale
        switch = entry.get("original_max_position_embeddings")
        if native.table_at is not None and switch:
            short, long = (float(native.table_at(torch.tensor(switch + i))[1]) for i in (0, 1))
        return {"short_mscale": short, "long_mscale": long}

    def beside_lists(self, scale: float) -> dict[str, Any]:
        """The factors that it reads instead of `attention_factor`."""
        return {"short_mscale": scale, "long_mscale": scale}

    def holds(self, module: Any, table: Tensor) -> bool:
        """Whether the function gives this very tensor."""
        return getattr(module.rope_init_fn, "table", None) is table

    def put(self, module: Any, table: Tensor, scale: Any) -> None:
        """Put a function that gives these in the place of the module's own."""
        module.rope_init_fn = Given(table, scale)


@dataclass(frozen=True, eq=False)
class Given:
    """A `rope_init_fn` that gives what it holds."""

    table: Tensor
    scale: Any

    def __call__(
        self, config: Any, device: Any = None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        """The table, where it is wanted, and the scale."""
        return self.table.to(device or self.table.device), self.scale


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The argument `x` of a rotary module, which tells device and dtype."""
    x: Tensor = args[0] if args else kwargs["x"]
    return x


def positions_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The argument `position_ids` of a rotary module, `(batch, length)`, or one for each axis."""
    positions: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    return positions


def row_lengths(positions: Tensor) -> Tensor:
    """Tokens that each row reaches, `(batch,)`, by positions `(axes, batch, length)` or fewer."""
    furthest = positions.amax(-1)
    return (furthest if furthest.ndim == 1 else furthest.amax(0)) + 1


def has_axes(module: Any) -> bool:
    """Whether tokens have three positions (time, height, width), as in Qwen2-VL."""
    entries = read_entries(module.config) if hasattr(module, "config") else {}
    said = any("mrope_section" in entry for entry in each_entry(entries))
    return said or hasattr(module, "mrope_section")
