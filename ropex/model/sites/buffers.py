"""Rotary modules that own an `inv_freq` buffer, which is nearly all of transformers."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropex.config.entry import reach, read_entries, read_entry, scaling_of, switch_of
from ropex.config.notations import is_nested
from ropex.config.write import write_entry
from ropex.model.attributes import set_attribute
from ropex.model.options import Options
from ropex.model.realise import realise
from ropex.model.sites.base import Site, checked_length
from ropex.model.sites.exact import ExactTables, layout_of
from ropex.model.sites.hooks import FixedTable, LengthTable, Rotation, Tables, protected
from ropex.model.sites.slots import FunctionSlot, Slot
from ropex.model.tables import Native, TableAt
from ropex.model.trained_length import require_length
from ropex.rope import Lists, Plan, Rope
from ropex.strategies.base import Strategy


@dataclass(frozen=True)
class BufferSite(Site):
    """An `inv_freq` buffer, or one of several, of a module that is called with positions.

    Attributes:
        slot: Where the module keeps it.
        alone: Whether the base in its config is read by no other table.
    """

    slot: Slot
    alone: bool = True

    @property
    def layer_type(self) -> str:
        """The layers that use this table; empty where the module has one for all."""
        return self.slot.layer_type

    @property
    def any_position(self) -> bool:
        """Whether tokens may stand at positions of the caller's choice."""
        return self.slot.by_positions

    def entry(self) -> dict[str, Any]:
        """The config entry, or what the module itself says where its config has none (DBRX)."""
        base = getattr(self.module, "base", None)
        entries = read_entries(self.config)
        if base and not is_nested(entries) and not entries.get("rope_theta"):
            return {"rope_type": "default", "rope_theta": base}
        return read_entry(self.config, self.layer_type)

    def said_length(self) -> int | None:
        """Tokens that it is made for by its config, its own scaling included."""
        return reach(self.config, self.entry())

    def rope(self, trained_length: int | None = None) -> Rope:
        """What it was trained with; see `Site.rope`."""
        entry, lists = self.entry(), self.lists()
        require_length(self, trained_length)
        length = checked_length(self.said_length(), trained_length)
        start = Plan(self.frequencies().double(), self.slot.scale(self.module))
        if lists is not None:
            start = lists.at(length)
        return Rope(
            dim=2 * len(start.inv_freq),
            base=float(entry["rope_theta"]),
            trained_length=length,
            inv_freq=start.inv_freq,
            attention_scale=start.attention_scale,
            by_length=entry["rope_type"] == "dynamic" or lists is not None,
            lists=lists,
        )

    def lists(self) -> Lists | None:
        """The two lists by which the model itself switches; None if it does not.

        Equal lists are how a static table is carried, and a patched module does not use the lists
        of its config.
        """
        if not self._switches():
            return None
        switch = switch_of(self.config, self.entry())
        fresh = self._built(self.config)
        with torch.no_grad():
            (short, low), (long, high) = (self.slot.at(fresh, switch + more) for more in (0, 1))
        if torch.equal(short, long) and low == high:
            return None
        return Lists(switch, Plan(short.double(), low), Plan(long.double(), high))

    def _switches(self) -> bool:
        """Whether the module switches between the two lists of its config."""
        entry = self.entry()
        unequal = entry.get("short_factor") != entry.get("long_factor")
        return unequal and self.slot.rope_type(self.module) == "longrope"

    def scaled_by(self) -> str | None:
        """How the checkpoint itself was scaled, in words; None if it was not."""
        return scaling_of(self.entry())

    def realise(self, strategy: Strategy, rope: Rope) -> Native:
        """The table of a strategy, and the config entry that represents it."""
        return realise(self, strategy, rope)

    def write(
        self, native: Native, lengths: tuple[int, int], homes: tuple[Any, ...], undo: ExitStack
    ) -> bool:
        """Write the entry into the config that the module reads, and those that are saved."""
        if native.entry is None:
            self.slot.settle(self.config, native)
            return False
        for config in {id(c): c for c in (self.config, *homes)}.values():
            write_entry(config, native.entry, *lengths, self.layer_type)
        return bool(homes)

    def install(
        self, native: Native, exact_at: TableAt, options: Options, length: int, undo: ExitStack
    ) -> Tables | None:
        """Make it compute `native`; see `Site.install`."""
        module, slot = self.module, self.slot
        by_length = native.table_at is not None
        tables, table = self._tables(native)
        if options.precision == "exact":
            layout = layout_of(module, slot)
            tables = ExactTables(slot, tables.before, exact_at, by_length, layout)
        set_attribute(module, "ropex_scales", slot.scales, undo)  # `attention_scaling` is ours now
        undo.callback(module.register_forward_pre_hook(tables.before, with_kwargs=True).remove)
        own = slot.scales and options == Options()
        if slot.by_positions and (by_length or not own):
            each_row = own or (slot.scales and by_length and options.precision == "parity")
            rotation = Rotation(slot, tables, each_row, options.cache == "unrotated")
            undo.callback(module.register_forward_hook(rotation, with_kwargs=True).remove)
        for name, value in slot.attributes(module, native, table, length).items():
            set_attribute(module, name, value, undo)
        return tables if slot.by_positions else None

    def fill_later(self, rope: Rope, undo: ExitStack) -> None:
        """Leave a table behind where there was none; see `Site.fill_later`."""
        if self.slot.table(self.module).is_meta:
            table = rope.inv_freq.float()
            undo.callback(self.slot.put, self.module, table, rope.attention_scale)

    def same(self, other: Site, *, tables: bool) -> bool:
        """Whether two models compute alike here; see `Site.same`."""
        if not isinstance(other, BufferSite) or str(self) != str(other):
            return False
        if self.slot.scale(self.module) != other.slot.scale(other.module):
            return False
        # A pair that does not turn has an immense divisor in the file, and no phase anywhere.
        ours, theirs = (site._held() for site in (self, other))
        return not tables or torch.equal(ours * (ours > 1e-20), theirs * (theirs > 1e-20))

    def _held(self) -> Tensor:
        """The table of the module, or the one that it would have outside of the meta device."""
        table = self.slot.table(self.module)
        return self.built(self.config)[0] if table.is_meta else table.detach().cpu()

    def live(self, length: int) -> Tensor:
        """The frequencies in the buffer after a call over `length` tokens, on the CPU."""
        table = self.slot.table(self.module)
        self.slot.ask(self.module, torch.zeros(1, 1, 1, device=table.device), length)
        return self.slot.table(self.module).detach().cpu()

    def built(self, config: Any) -> tuple[Tensor, float]:
        """What transformers computes for `config` when it builds such a module.

        Returns:
            The frequencies, `(dim // 2,)`, float32, on the CPU, and the factor of cos and sin.
        """
        module = self._built(config)
        return self.slot.table(module).detach().float(), self.slot.scale(module)

    def built_type(self, config: Any) -> str:
        """The rope type of such a module."""
        return self.slot.rope_type(self._built(config))

    def _built(self, config: Any) -> Any:
        with torch.device("cpu"):
            return type(self.module)(config)

    def frequencies(self) -> Tensor:
        """The unrounded frequencies, float32, on the CPU."""
        live = self.slot.table(self.module)
        if self.entry()["rope_type"] == "dynamic":  # the live one depends on what was seen last
            live = getattr(self.module, self.slot.name("original_inv_freq"))
        # Not there yet, or rounded, or what was seen last.
        if live.is_meta or live.dtype != torch.float32 or self._switches():
            return self.built(self.config)[0]
        return torch.as_tensor(live).detach().cpu()

    def _tables(self, native: Native) -> tuple[Tables, Tensor]:
        """The tables, and the one that the module holds first."""
        live = self.slot.table(self.module)
        if native.table_at is not None:
            return LengthTable(self.slot, native.table_at), live
        assert native.inv_freq is not None
        table = protected(native.inv_freq.to("cpu" if live.is_meta else live.device, copy=True))
        return FixedTable(self.slot, table, native.attention_scale), table


def found_in(name: str, module: nn.Module, owner: nn.Module) -> tuple[BufferSite, ...]:
    """The tables of a module; empty if ropex can patch none of them exactly."""
    return tuple(BufferSite(name, module, owner, slot) for slot in _slots(module))


def looks_rotary(module: nn.Module) -> bool:
    """Whether a module owns frequencies of some kind, or computes them in each call."""
    return any(map(_is_table, module._buffers)) or hasattr(module, "rope_init_fn")


def _is_table(name: str) -> bool:
    return name.endswith("inv_freq") and "original" not in name


def _slots(module: Any) -> tuple[Slot, ...]:
    """The tables of a module that its output follows."""
    parameters = inspect.signature(module.forward).parameters
    by_positions = "position_ids" in parameters
    names = [name for name, _ in module.named_buffers(recurse=False) if _is_table(name)]
    types = [name.removesuffix("inv_freq").removesuffix("_") for name in names]
    if not set(types) <= {"", *_layer_types(module)}:
        return ()
    own = all(hasattr(module, Slot(each).name("attention_scaling")) for each in types)
    scales = getattr(module, "ropex_scales", own)
    slots = tuple(Slot(each, scales, by_positions) for each in types)
    if by_positions and slots and all(_follows(module, slot) for slot in slots):
        return slots
    function = FunctionSlot(by_positions=by_positions)
    takes = by_positions or "seq_len" in parameters
    if hasattr(module, "rope_init_fn") and takes and _follows(module, function):
        return (function,)
    return ()


def _follows(module: Any, slot: Slot) -> bool:
    """Whether the output of a module depends on what a slot puts; PhiMoE's ignores its buffer."""
    table = slot.table(module)
    if table.ndim != 1:
        return False
    if table.is_meta and hasattr(module, "config"):  # ask one that has a table
        with torch.device("cpu"):
            module = type(module)(module.config)
        table = slot.table(module)
    if table.is_meta:
        return not isinstance(slot, FunctionSlot)
    twin = copy.copy(module)
    twin._buffers = dict(module._buffers)
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()
    vars(twin).pop("forward", None)  # accelerate's
    # It must not renew its table by itself.
    twin.rope_type = dict.fromkeys(_layer_types(module), "default") or "default"
    outputs = []
    for factor in (1.0, 0.5):
        slot.put(twin, torch.full_like(table, factor, dtype=torch.float32), 1.0)
        output = slot.ask(twin, torch.zeros(1, 2, 1, device=table.device), 2)
        outputs.append(output if isinstance(output, Tensor) else output[0])
    return not torch.equal(*outputs)


def _layer_types(module: Any) -> tuple[str, ...]:
    """Types of layers that a module has tables for; none if it has one for all."""
    kind = getattr(module, "rope_type", None)
    return tuple(kind) if isinstance(kind, dict) else ()
