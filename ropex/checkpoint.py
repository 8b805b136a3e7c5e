"""Write patched checkpoints that load without ropex."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ropex.folding import fold, foldable
from ropex.headers import read_json
from ropex.loading import load_skeleton
from ropex.models import sites
from ropex.patching import Patch
from ropex.record import Record
from ropex.saving import completed

_TOKENIZER = "tokenizer_config.json"
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5")


def save_patched(
    folder: Path, patch: Patch, out: Path, *, force: bool = False, temperature: float = 1.0
) -> None:
    """Write the checkpoint in `folder` with the config of a patch, weights untouched.

    Plain `from_pretrained` of transformers 4 and 5 loads it to what the patched model computes.
    Weights are hard links where the file system allows it, copies elsewhere.

    Args:
        folder: The checkpoint; it is only read.
        patch: A patch of its model, which may be a skeleton.
        out: Where to write. It appears complete or not at all.
        force: Replace `out` if it holds a checkpoint already.
        temperature: What cos and sin would be multiplied by besides, folded into query weights.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or it is not a checkpoint, or it
            lies in `folder` or around it.
        ValueError: No config can say what the strategy does, or the checkpoint has one already of
            which that is true, or a file of it is damaged.
    """
    folded = foldable(patch) if temperature != 1 else {}
    if any(site.in_weights for site in patch.sites):
        raise ValueError(
            f"the rotary table of {patch.model.config.model_type} is one of its weights; save the "
            "patched model itself, with ropex.patch(model, ...) and model.save_pretrained(...)"
        )
    if not patch.in_config:
        raise ValueError(
            f"{patch.strategy} cannot be written into a config that transformers reads alike; "
            "apply it after loading, with ropex.patch"
        )
    raw = read_json(folder / "config.json")
    whole, part = raw.get("model_type"), patch.model.config.model_type
    if whole != part:
        raise ValueError(
            f"{folder} is a {whole} model, of which {part} is a part; ropex writes checkpoints of "
            "plain language models"
        )
    before = Record.in_config_of(folder)
    _check_out(folder, out, force)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        built = Path(temporary) / "checkpoint"
        built.mkdir()
        for source in _files(folder):
            _carry(source, built / source.relative_to(folder))
        _write_json(built / "config.json", completed(raw, patch.model.config, patch.configs))
        _record(before, patch, temperature).write(built)
        _raise_tokenizer_limit(folder, built, patch.target_length)
        _check_written(built, patch)
        if folded:
            fold(built, folded, patch.rope.dim, temperature**2)
        _put(built, out, Path(temporary) / "replaced")


def _record(before: Record | None, patch: Patch, temperature: float) -> Record:
    """The record of a patch, on top of what the checkpoint itself records."""
    found = Record.of(patch.model)
    assert found is not None  # it is patched
    record = replace(found, folded_temperature=temperature)
    return record if before is None else record.after(before)


def _files(folder: Path) -> list[Path]:
    """What belongs to a checkpoint: the files of its folder, and further chat templates.

    Raises:
        FileNotFoundError: There are no weights among them.
    """
    found = [path for path in folder.iterdir() if path.is_file()]
    if not any(path.suffix in _WEIGHTS for path in found):
        raise FileNotFoundError(f"{folder} holds no weights, so there is no checkpoint to write")
    return sorted([*found, *folder.glob(f"{_TEMPLATES}/*.jinja")])


def _check_written(built: Path, patch: Patch) -> None:
    """Raise a ValueError unless the written config builds what the patched model computes."""
    remote = type(patch.model).__module__.startswith("transformers_modules")
    written = load_skeleton(built, trust_remote_code=remote)
    static = patch.length_class == "static"
    pairs = zip(patch.sites, sites(written), strict=True)
    other = [str(ours) for ours, theirs in pairs if not ours.same(theirs, tables=static)]
    for name, module in written.named_modules():  # attention that scales its logits
        if vars(module).get("scaling") != vars(patch.model.get_submodule(name)).get("scaling"):
            other.append(name)
    if other:
        raise ValueError(
            f"{patch.strategy}: transformers builds {other[0]} otherwise from the new config, so "
            "nothing was written; apply the strategy after loading, with ropex.patch"
        )


def _put(built: Path, out: Path, aside: Path) -> None:
    """Move `built` to `out`, and what was there to `aside`; put it back if that fails."""
    if not out.exists():
        os.replace(built, out)
        return
    os.replace(out, aside)
    try:
        os.replace(built, out)
    except BaseException:
        os.replace(aside, out)
        raise


def _check_out(folder: Path, out: Path, force: bool) -> None:
    source, target = folder.resolve(), out.resolve()
    if source == target or target in source.parents:
        raise FileExistsError(f"{out} holds the checkpoint that is read; write elsewhere")
    if source in target.parents:
        raise FileExistsError(f"{out} lies in the checkpoint that is read; write elsewhere")
    if out.is_symlink() and not out.exists():
        raise FileExistsError(f"{out} is a link to nothing; remove it, or write elsewhere")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not _is_checkpoint(out):
            raise FileExistsError(f"{out} exists and is not a checkpoint, so it is not replaced")
        if not force:
            raise FileExistsError(f"{out} exists; --force replaces it")


def _is_checkpoint(out: Path) -> bool:
    """Whether `out` holds a model's config and no folders but the one that ropex carries over."""
    if not (out / "config.json").is_file():
        return False
    if {path.name for path in out.iterdir() if path.is_dir()} - {_TEMPLATES}:
        return False
    return "model_type" in read_json(out / "config.json")


def _carry(source: Path, target: Path) -> None:
    """Link a file of weights, copy any other, which a user may want to edit."""
    target.parent.mkdir(exist_ok=True)
    if source.suffix in _WEIGHTS:
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)


def _raise_tokenizer_limit(folder: Path, built: Path, length: int) -> None:
    """Let the tokenizer pass `length` tokens; engines take the smaller of the limits."""
    if not (folder / _TOKENIZER).is_file():
        return
    settings = read_json(folder / _TOKENIZER)
    limit = settings.get("model_max_length")
    if isinstance(limit, (int, float)) and limit < length:  # a tokenizer may have none
        settings["model_max_length"] = length
        _write_json(built / _TOKENIZER, settings)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
