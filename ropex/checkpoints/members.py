"""Which files make a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5")
TEMPLATES = "additional_chat_templates"
# What ropex and `save_pretrained` of models, tokenizers and processors write.
_WRITTEN = re.compile(
    r"config\.json|generation_config\.json|ropex\.json|training_args\.bin"
    r"|(model|pytorch_model|tf_model|flax_model)(\.\w+)?(-\d{5}-of-\d{5})?"
    r"\.(safetensors|bin|h5|msgpack)(\.index\.json)?"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|(\w+_)?(preprocessor|processor)_config\.json"
    r"|vocab\.txt|merges\.txt|chat_template\.jinja|[\w.-]+\.(model|tiktoken)"
    r"|(configuration|modeling|tokenization|processing)_\w+\.py"
)


def members(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of a checkpoint, and the names of links that lead out of it.

    Links of a hub's cache lead to its blobs, which are the checkpoint: to those of the model, and
    from there in new versions to those that models share. Others are not followed, so
    that nobody's files become part of what is written, unless they are safetensors: those hold
    numbers alone, and are what the model is loaded from.

    Raises:
        FileNotFoundError: There are no weights among them.
    """
    found = [path for path in folder.iterdir() if path.is_file()]
    found += folder.glob(f"{TEMPLATES}/*.jinja")
    kept = [path for path in sorted(found) if _belongs(path, folder)]
    if not any(path.suffix in WEIGHTS for path in kept):
        out = [path.name for path in found if path.suffix in WEIGHTS]
        raise FileNotFoundError(
            f"{folder / out[0]} is a link that leads out of the checkpoint, so it is not followed; "
            "put the file itself there"
            if out
            else f"{folder} holds no weights, so there is no checkpoint to write"
        )
    return kept, [str(path.relative_to(folder)) for path in sorted(found) if path not in kept]


def _belongs(path: Path, folder: Path) -> bool:
    real, there = folder.resolve(), path.resolve()
    if there.is_relative_to(real) or path.suffix == ".safetensors":
        return True
    if real.parent.name != "snapshots" or not real.parents[1].name.startswith("models--"):
        return False
    stores = (real.parents[1] / "blobs", real.parents[2] / "blobs")  # of the model; of all of them
    return any(map(there.is_relative_to, stores))


def stranger(out: Path, source: Path) -> str | None:
    """A name in `out` that no checkpoint has which ropex makes of `source`, or which is saved."""
    for path in sorted(out.iterdir()):
        if path.is_dir() and path.name == TEMPLATES:
            other = (each.name for each in path.iterdir() if each.suffix != ".jinja")
            if name := next(other, None):
                return f"{TEMPLATES}/{name}"
        elif path.is_dir() or not (_WRITTEN.fullmatch(path.name) or (source / path.name).is_file()):
            return path.name
    return None
