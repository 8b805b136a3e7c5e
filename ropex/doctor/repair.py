"""Fix what findings know how to fix, and keep what was there."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ropex.config.edits import Edit, shown
from ropex.doctor.diagnosis import examine
from ropex.doctor.findings import Finding
from ropex.doctor.loads import why_not
from ropex.doctor.reading import CONFIG, TOKENIZER, Checkpoint, read
from ropex.files.writing import atomically

_MOST = 100  # rounds, one rule in each


@dataclass(frozen=True)
class Repair:
    """What was done.

    Attributes:
        mended: The findings that are gone.
        left: Those that take a person's decision.
        backups: Where the files that were changed are kept as they were.
    """

    mended: tuple[Finding, ...]
    left: tuple[Finding, ...]
    backups: tuple[Path, ...]


def repair(
    path: Path | str, *, engine: str | None = None, trained_length: int | None = None
) -> Repair:
    """Fix a checkpoint in place; what was there is kept as `config.json.bak`, or with a number.

    Nothing but config.json and tokenizer_config.json is ever changed. What the installed
    transformers made a model of before, it makes a model of after.

    Args:
        path: As for `diagnose`.
        engine: Only what goes wrong there.
        trained_length: As for `diagnose`; it is written where it is missing.

    Raises:
        ValueError: As for `diagnose`; or the fixes do not come to rest, or would keep transformers
            from loading the model. Nothing is changed then.
    """
    path = Path(path)
    before = read(path, trained_length=trained_length)
    after, mended = repaired(before, engine=engine)
    folder = path if path.is_dir() else path.parent
    old, new = before.documents, after.documents
    changed = [name for name in (CONFIG, TOKENIZER) if _text(new.get(name)) != _text(old.get(name))]
    if CONFIG in changed:
        _check_loading(old[CONFIG], new[CONFIG], mended)
    backups = tuple(_rewrite(folder / name, after.documents[name]) for name in changed)
    return Repair(mended, examine(after, engine=engine), backups)


def _check_loading(old: dict[str, Any], new: dict[str, Any], mended: tuple[Finding, ...]) -> None:
    """Raise a ValueError where a model is made of the old config, and none of the new one."""
    reason = why_not(new)
    if reason is None or why_not(old) is not None:
        return
    rules = ", ".join(dict.fromkeys(finding.rule for finding in mended))
    raise ValueError(
        f"the installed transformers loads this {CONFIG}, and would not once {rules} are fixed "
        f"({shown(reason)}), so nothing was changed; fix it by hand"
    )


def repaired(
    checkpoint: Checkpoint, *, engine: str | None = None
) -> tuple[Checkpoint, tuple[Finding, ...]]:
    """The checkpoint as it would be, and the findings that are gone; nothing is written.

    What one rule finds is fixed at a time, the first rule first, since that may bring or settle
    what others find.

    Raises:
        ValueError: The fixes do not come to rest.
    """
    mended: list[Finding] = []
    for _ in range(_MOST):
        fixable = [each for each in examine(checkpoint, engine=engine) if each.fixable]
        if not fixable:
            return checkpoint, tuple(mended)
        now = [each for each in fixable if each.rule == fixable[0].rule]
        edits = [edit for finding in now for edit in finding.edits]
        checkpoint = replace(checkpoint, documents=edited(checkpoint.documents, edits))
        mended += now
    raise ValueError(
        f"the fixes of {fixable[0].rule} and of other rules undo each other on this config, so "
        "nothing was changed; fix it by hand"
    )


def edited(
    documents: Mapping[str, dict[str, Any]], edits: Iterable[Edit]
) -> dict[str, dict[str, Any]]:
    """The documents with some changes."""
    result = copy.deepcopy(dict(documents))
    for edit in edits:
        inner = result[edit.file]
        for key in edit.path[:-1]:
            inner = inner[key]
        if edit.remove:
            inner.pop(edit.path[-1], None)
        else:
            inner[edit.path[-1]] = copy.deepcopy(edit.value)
    return result


def _rewrite(path: Path, content: dict[str, Any]) -> Path:
    """Replace a file at once, and return where the old one is kept; all or nothing."""
    backup = _backup(path)
    try:
        with atomically(path) as temporary:
            temporary.write_text(_text(content), encoding="utf-8")
            shutil.copymode(path, temporary)
    except OSError:
        backup.unlink()
        raise
    return backup


def _text(content: dict[str, Any] | None) -> str:
    """A document as it is written; unlike Python, it distinguishes 4 from 4.0."""
    return json.dumps(content, indent=2) + "\n"


def _backup(path: Path) -> Path:
    """A copy of a file beside it, under a name that nothing had, a dangling link included."""
    content = path.read_bytes()
    for count in itertools.count():
        backup = path.with_name(f"{path.name}.bak{f'.{count}' if count else ''}")
        with contextlib.suppress(FileExistsError):
            backup.touch(exist_ok=False)
            break
    try:
        backup.write_bytes(content)
    except BaseException:  # a full disk
        backup.unlink()
        raise
    return backup
