"""The Python standard library as a corpus: long real documents that every machine already has."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path

# Long modules that exist, under these names, in every Python from 3.10 to 3.14. The bundled demo
# checkpoint never sees them in training, so they are its evaluation text.
HELD_OUT = (
    "_pydecimal", "argparse", "difflib", "doctest", "inspect", "ipaddress", "mailbox",
    "pickletools", "statistics", "subprocess", "tarfile", "typing",
)  # fmt: skip
# Not prose and not code that people write: tests, tables and build-time dumps.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


def stdlib_folder() -> Path:
    """Folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def held_out_files() -> list[Path]:
    """Source files of the modules in `HELD_OUT` that this interpreter has."""
    return [path for name in HELD_OUT if (path := stdlib_folder() / f"{name}.py").is_file()]


def training_texts() -> dict[str, str]:
    """Every other module's source, and the language reference, by name and in a fixed order."""
    folder, held_out = stdlib_folder(), set(held_out_files())
    texts = {}
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        generated = path.name.startswith("_sysconfigdata")
        if generated or path in held_out or _SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        texts[relative.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    texts["pydoc_data/topics"] = _language_reference()
    return texts


def _language_reference() -> str:
    """The topics that `help()` prints, joined; empty if the interpreter ships without them."""
    if importlib.util.find_spec("pydoc_data") is None:
        return ""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))
