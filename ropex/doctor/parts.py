"""Rules that look at each part, or at each rope entry, of a config.json."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING

from ropex.config.entry import Entry, entries_of
from ropex.config.parts import Part, parts_of
from ropex.doctor.findings import Problem

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint


def parts(checkpoint: Checkpoint) -> Iterator[Part]:
    """The config, and the parts of it that describe a language model."""
    config = checkpoint.documents.get("config.json")
    if config is not None:
        remote = "auto_map" in config
        yield from parts_of(Part((), config, remote, checkpoint.trained, checkpoint.target))


def on_parts(
    check: Callable[[Part], Iterator[Problem]],
) -> Callable[[Checkpoint], Iterator[Problem]]:
    """The check of every part, from the check of one."""

    @wraps(check)
    def all_parts(checkpoint: Checkpoint) -> Iterator[Problem]:
        for part in parts(checkpoint):
            yield from check(part)

    return all_parts


def on_entries(
    check: Callable[[Entry], Iterator[Problem]],
) -> Callable[[Checkpoint], Iterator[Problem]]:
    """The check of every entry, from the check of one."""

    @wraps(check)
    def all_entries(checkpoint: Checkpoint) -> Iterator[Problem]:
        for part in parts(checkpoint):
            for entry in entries_of(part):
                yield from check(entry)

    return all_entries
