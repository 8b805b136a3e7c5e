"""Rules that look at each part, or at each rope entry, of a config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ropex.config.entry import Entry, entries_of
from ropex.config.parts import Part, parts_of
from ropex.doctor.findings import on_each

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint


def parts(checkpoint: Checkpoint) -> Iterator[Part]:
    """The config, and the parts of it that describe a language model."""
    config = checkpoint.documents.get("config.json")
    if config is not None:
        remote = "auto_map" in config
        yield from parts_of(Part((), config, remote, checkpoint.trained, checkpoint.target))


def _entries(checkpoint: Checkpoint) -> Iterator[Entry]:
    for part in parts(checkpoint):
        yield from entries_of(part)


on_parts = on_each(parts)
"""The check of every part, from the check of one."""
on_entries = on_each(_entries)
"""The check of every entry, from the check of one."""
