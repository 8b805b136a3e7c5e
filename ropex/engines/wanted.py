"""What an engine is to compute: the rotary embedding of a checkpoint, patched or to be patched."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropex.checkpoints.loading import load_skeleton
from ropex.config import numbers as formulas
from ropex.config.entry import completed_entry, reach, read_entries
from ropex.config.notations import is_nested, misread_by_4
from ropex.errors import UnsupportedModel
from ropex.model.rotary import main_site, sites
from ropex.model.sites.base import Site
from ropex.model.sites.buffers import BufferSite
from ropex.model.tables import close
from ropex.model.trained_length import require_length
from ropex.patching.handle import Patch, patch
from ropex.patching.record import Record
from ropex.patching.saving import completed
from ropex.rope import Rope
from ropex.strategies.base import Strategy

_PART = "text_config"  # of a model that also sees or hears


@dataclass(frozen=True, eq=False)
class Wanted:
    """A rotary embedding, as a config says it and as numbers.

    Attributes:
        model_type: Of the config that describes it.
        part: Where that config stands in config.json; empty if it is the whole.
        entry: The rope entry that stands for it, of a patched model the one that is written.
        raw: The part of config.json, as it is.
        config: The same with `entry`, in both notations, as `ropex patch` writes it.
        dim: Rotated dimensions of a head.
        base: `rope_theta` of the file as it is.
        trained_length: Tokens that the model was trained at.
        target_length: Tokens that it is to reach.
        inv_freq: At the target length, `(dim // 2,)`, float64.
        short: At the trained length; another one only where it depends on the length.
        attention_scale: What cos and sin are multiplied by.
        interleaved: Whether neighbouring dimensions form the pairs.
        latent: Whether attention is latent, so that entries scale its softmax as well.
        misread: What transformers 4 makes of it, where that is something else.
        refusal: Why no config can say it; None where one can.
        several: Whether layers of other types rotate otherwise.
    """

    model_type: str
    part: str
    entry: dict[str, Any]
    raw: dict[str, Any]
    config: dict[str, Any]
    dim: int
    base: float
    trained_length: int
    target_length: int
    inv_freq: Tensor
    short: Tensor
    attention_scale: float
    interleaved: bool = False
    latent: bool = False
    misread: str | None = None
    refusal: str | None = None
    several: bool = False

    @property
    def patched(self) -> Wanted:
        """The same of the checkpoint that `ropex patch` writes."""
        return replace(self, raw=self.config)

    @property
    def standard(self) -> Tensor:
        """The unscaled frequencies of the entry's base, float64."""
        return Rope.standard(self.dim, float(self.entry["rope_theta"]), 2).inv_freq

    @property
    def divisors(self) -> Tensor:
        """Unscaled frequency over wanted one, at the target length; a lot where it is 0."""
        return (self.standard / self.inv_freq).clamp(max=1e30)

    @property
    def by_length(self) -> bool:
        """Whether short texts are to have frequencies of their own."""
        lists = self.entry.get("short_factor"), self.entry.get("long_factor")
        return self.entry["rope_type"] == "dynamic" or lists[0] != lists[1]

    @property
    def scales_softmax(self) -> bool:
        """Whether the entry scales all logits of latent attention, and not the rotated slice."""
        scaled = self.attention_scale != 1 or bool(self.entry.get("mscale_all_dim"))
        return self.latent and scaled

    @property
    def endless(self) -> bool:
        """Whether it goes by the length, and no length is stated at which to hold it."""
        return self.by_length and self.target_length <= self.trained_length


def read(
    folder: Path,
    strategy: str | None = None,
    *,
    trained_length: int | None = None,
    trust_remote_code: bool = False,
) -> Wanted:
    """What a checkpoint computes; with a strategy, what it would if it were patched.

    Args:
        folder: The checkpoint, which is only read; its weights are not needed.
        strategy: The text of a strategy to apply first.
        trained_length: Tokens that the model was trained at, where its config does not say.
        trust_remote_code: Whether code that comes with the checkpoint may run.

    Raises:
        UnsupportedModel: It has no rotary embedding that ropex can read.
        ValueError: The strategy does not fit, its checkpoint has one that no config can say, or
            the config does not say what is needed.
    """
    model = load_skeleton(folder, trust_remote_code=trust_remote_code)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    require_length(main_site(sites(model)), trained_length)
    if strategy is not None:
        Record.in_config_of(folder)  # raises where a record says more than the config
        return of_model(model, raw, [strategy], trained_length=trained_length)
    record = Record.read(folder)
    kept = record.strategies if record and not record.in_config else []
    if record and kept and trained_length is None:
        trained_length = record.trained_length
    return of_model(model, raw, kept, trained_length=trained_length, record=record)


def of_model(
    model: Any,
    raw: dict[str, Any],
    strategies: Sequence[str | Strategy],
    *,
    trained_length: int | None = None,
    record: Record | None = None,
) -> Wanted:
    """What a model would compute under strategies; it is left as it was.

    Args:
        model: A model of transformers; its weights are not needed.
        raw: The JSON of its config.
        strategies: What is applied to it, in this order.
        trained_length: Tokens that it was trained at, where its config does not say.
        record: Where both lengths are recorded, if anywhere.

    Raises: As `read`.
    """
    site, handle, given = main_site(sites(model)), None, trained_length
    base = _base(site)
    with ExitStack() as patched:
        for strategy in strategies:
            handle = patched.enter_context(patch(model, strategy, trained_length=given))
            given = None
        lengths = _lengths(site, handle, record, trained_length)
        return _wanted(raw, main_site(sites(model)), handle, base, lengths)


def _base(site: Site) -> float:
    entry = read_entries(site.config)
    entry = entry[site.layer_type] if is_nested(entry) else entry
    return float(entry.get("rope_theta") or 0)


def _lengths(
    site: Site, handle: Patch | None, record: Record | None, given: int | None
) -> tuple[int, int]:
    """The trained and the target length."""
    if record is not None:
        return record.trained_length, record.target_length
    if handle is not None:
        return handle.rope.trained_length, handle.target_length
    if not isinstance(site, BufferSite):
        length = site.rope(given).trained_length
        return length, length
    entry = completed_entry(site.config, site.layer_type)
    said = int(
        given or getattr(site.config, "max_position_embeddings", 0) or site.said_length() or 0
    )
    if entry["rope_type"] == "dynamic":
        return said, round(said * float(entry.get("factor") or 1))
    return formulas.original(entry, said), reach(site.config, entry) or said


def _wanted(
    raw: dict[str, Any], site: Site, handle: Patch | None, base: float, lengths: tuple[int, int]
) -> Wanted:
    config, refusal = site.config, _refusal(site, handle)
    part = "" if raw.get("model_type") == config.model_type else _PART
    if part and part not in raw:
        part, refusal = "", f"ropex does not know which part of config.json is {config.model_type}"
    raw = raw[part] if part else raw
    entry: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if base:
        entry = completed_entry(config, site.layer_type)
    dim, short, long, scale = _numbers(site, handle, entry, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `misread` says it
        written = completed(raw, config, () if refusal else (config,))
    entries = read_entries(config)
    return Wanted(
        config.model_type, part, entry, raw, written, dim, base, *lengths, long, short, scale,
        interleaved=_interleaved(site),
        latent=bool(site.latent),
        misread=misread_by_4(entries, config.model_type) if base else None,
        refusal=refusal,
        several=is_nested(entries) or not getattr(site, "alone", True),
    )  # fmt: skip


def _refusal(site: Site, handle: Patch | None) -> str | None:
    """Why no config says what was planned."""
    if handle is not None and not handle.in_config:
        if handle.plan.query_scale is not None:
            return (
                f"{handle.strategy} scales each query by its position, which no config can say; "
                "apply it with ropex.patch after loading"
            )
        if handle.plan.positions is not None:
            return (
                f"{handle.strategy} maps positions in attention, which no config can say; apply it "
                "with ropex.patch after loading"
            )
        if handle.length_class != "static":
            return (
                f"{handle.strategy} goes by the length of each text, which no config can say; "
                "give it one, as in dynamic_yarn:length=32k"
            )
    elsewhere = handle is not None and not handle.in_config
    if elsewhere or not isinstance(site, BufferSite):
        return (
            f"the rotary embedding of {site.config.model_type} is not read from an entry of its "
            "config; apply the strategy with ropex.patch after loading"
        )
    return None


def _numbers(
    site: Site, handle: Patch | None, entry: dict[str, Any], lengths: tuple[int, int]
) -> tuple[int, Tensor, Tensor, float]:
    """Rotated dimensions, frequencies at the two lengths and the factor of cos and sin."""
    trained, target = lengths
    if not isinstance(site, BufferSite):
        plan = handle.plan if handle else None
        inv_freq = plan.inv_freq if plan else site.rope(trained).inv_freq
        return 2 * len(inv_freq), inv_freq, inv_freq, float(plan.attention_scale if plan else 1)
    table, scale = site.built(site.config)
    dim = 2 * len(table)
    if entry["rope_type"] not in formulas.KNOWN:
        return dim, table.double(), table.double(), scale
    short, long = (formulas.frequencies(entry, dim, trained, n) for n in (trained, target))
    if not close(table, formulas.frequencies(entry, dim, trained, 2)):  # none is read yet
        raise UnsupportedModel(
            f"{site.config.model_type} computes other frequencies than its {entry['rope_type']} "
            "entry says, so ropex does not know what an engine would"
        )
    return dim, short, long, scale


def _interleaved(site: Site) -> bool:
    """Whether neighbouring dimensions form a pair, by how the family's own code turns them."""
    code = vars(sys.modules[type(site.module).__module__])
    turn = code.get("rotate_half")
    if turn is None or site.latent:
        return bool(site.latent) or "rotate_every_two" in code
    turned: list[float] = turn(torch.arange(4.0)).tolist()
    return turned == [-1.0, 0.0, -3.0, 2.0]
