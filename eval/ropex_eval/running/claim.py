"""Whose a run's folder is: of one model, and of all processes that measure it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ropex.files.locks import locked
from ropex.files.writing import half_written
from ropex_eval.scores.results import Results
from ropex_eval.study.study import Study, versions

LOCKS = "locks"
"""Folder of locks on parts of the work; it is there while somebody is at work."""

_WRITTEN = (
    "results.*", "excerpts.*", "report.*", "ppl.*", "nll/*", "answers/*", "samples/*", "lm_eval/*",
)  # fmt: skip
"""What `ropex.files.writing.atomically` writes here."""

_AT_WORK = ".at-work"
WAIT = 600  # seconds that others may take to write their results


def check_out(out: Path, force: bool) -> None:
    """Refuse a folder with other files in it, before anything is computed.

    Raises:
        FileExistsError: `out` or what it is in is a file, or `out` is a folder of other files, and
            `force` is not set.
    """
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; give a folder")
    if force or not out.is_dir() or (out / "results.json").is_file():
        return
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise FileExistsError(f"{out} holds other files; give another folder, or --force")


def is_fresh(study: Study, out: Path, force: bool) -> bool:
    """Whether no results are there, or they are to be replaced.

    Raises:
        FileExistsError: They are of a different model, and `force` is not set.
        ValueError: They are damaged, and `force` is not set.
    """
    if not (out / "results.json").is_file():
        return True
    try:
        earlier = Results.load(out)
    except ValueError:  # damaged, or of another version of ropex
        if not force:
            raise
        return True
    changed = _changed(study, earlier)
    if changed and not force:
        raise FileExistsError(
            f"{out} holds a run of a different model ({changed}); give another folder, or --force "
            "to replace it"
        )
    return bool(changed)


class Claim:
    """A run's folder while this process is at work in it.

    Which model it is of is decided, and its results are written, by one process at a time. Every
    process at work there holds a lock of its own, so that the last one that leaves can clear up.

    Args:
        study: What is measured.
        out: The folder.
        force: Replace the results of a different model.
        tell: Called with each sentence that the user should read.
    """

    def __init__(
        self, study: Study, out: Path, force: bool, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.study, self.out, self.force, self.tell = study, out, force, tell
        self._presence = FileLock(out / _AT_WORK / f"{uuid.uuid4().hex}.lock")

    def __enter__(self) -> Claim:
        """Take the folder, or take part in it.

        Raises:
            FileExistsError: It is of a different model, or of one at work that `force` would
                replace.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, WAIT):
            check_out(self.out, self.force)
            fresh, others = is_fresh(self.study, self.out, self.force), self._others()
            if fresh and others and (self.out / "results.json").is_file():
                raise FileExistsError(
                    f"a run of a different model is at work in {self.out}; give another folder, or "
                    "--force when it has ended"
                )
            if not others:
                self._clear()
            if fresh:
                Results(self.study.about(self.study.corpus), self.study.protocol).save(self.out)
            Path(self._presence.lock_file).parent.mkdir(exist_ok=True)
            self._presence.acquire(timeout=0)
        return self

    def __exit__(self, *error: object) -> None:
        if not self.out.is_dir():  # somebody has removed it
            self._presence.release()
            return
        with locked(self.out, WAIT):
            self._presence.release()
            Path(self._presence.lock_file).unlink(missing_ok=True)
            if not self._others():
                shutil.rmtree(self.out / LOCKS, ignore_errors=True)
                shutil.rmtree(self.out / _AT_WORK, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one that reads and writes results.

        Raises:
            FileExistsError: They are no longer of this model.
        """
        with locked(self.out, WAIT):
            if is_fresh(self.study, self.out, force=True):
                raise FileExistsError(
                    f"{self.out / 'results.json'} was removed or replaced while this run was at "
                    "work; nothing is written over it; start the run again, in another folder (-o) "
                    "if a different model has this one"
                )
            yield

    def _others(self) -> bool:
        """Whether another process is at work; what those that were killed have left is removed."""
        alive = False
        for path in (self.out / _AT_WORK).glob("*.lock"):
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                alive = True
                continue
            lock.release()
            path.unlink(missing_ok=True)
        return alive

    def _clear(self) -> None:
        """Remove what runs that were killed have left half written."""
        left = half_written(self.out, _WRITTEN)
        for path in left:
            path.unlink(missing_ok=True)
        if left:
            files = "1 file" if len(left) == 1 else f"{len(left)} files"
            self.tell(f"{files} that a killed run had half written in {self.out} are removed")


def _changed(study: Study, earlier: Results) -> str:
    """What of the model is not what it was; empty if it is the same."""
    old = {"model": earlier.about["model"], "versions": earlier.about["versions"]}
    return _difference(old, {"model": study.about_model, "versions": versions()})


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Names of the entries that differ, such as `model.dtype`, but for names that users give."""
    return ", ".join(
        f"{part}.{key}"
        for part in new
        for key in new[part]
        if key != "id" and old[part].get(key) != new[part][key]
    )
