"""Write patched checkpoints that load without ropex."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ropex.checkpoints.copies import provide
from ropex.checkpoints.fold import fold, foldable, holding
from ropex.checkpoints.loading import check_fit, load_skeleton
from ropex.checkpoints.members import WEIGHTS, members, stranger
from ropex.files.places import BUILT, clear, put, workplace
from ropex.files.untrusted import read_json
from ropex.files.writing import naming, write_json
from ropex.model.rotary import sites
from ropex.patching.handle import Patch
from ropex.patching.record import Record
from ropex.patching.saving import completed

_TOKENIZER = "tokenizer_config.json"


def save_patched(
    folder: Path,
    patch: Patch,
    out: Path,
    *,
    force: bool = False,
    temperature: float = 1.0,
    link: bool = False,
) -> str:
    """Write the checkpoint in `folder` with the config of a patch, weights untouched.

    Plain `from_pretrained` of transformers 4 and 5 loads it to what the patched model computes.
    Nothing that is written into it later reaches `folder`, unless links are asked for.

    Args:
        folder: The checkpoint; it is only read.
        patch: A patch of its model, which may be a skeleton.
        out: Where to write. It appears complete or not at all.
        force: Replace `out` if it holds a checkpoint already.
        temperature: What cos and sin would be multiplied by besides, folded into query weights.
        link: Make hard links of the weights, which cost nothing at any size; what writes into the
            weights of one checkpoint then writes into those of the other.

    Returns:
        What the weights are: `cloned`, which costs nothing either, where the file system can;
        `copied` elsewhere; or `linked`.

    Raises:
        FileExistsError: `out` exists and `force` is not set, or it holds more than a checkpoint,
            or it lies in `folder` or around it.
        OSError: There is no room for the weights, or no link can be made.
        ValueError: No config can say what the strategy does, or the checkpoint has one already of
            which that is true, or a file of it is damaged.
    """
    folded = foldable(patch) if temperature != 1 else {}
    raw = _raw(folder, patch)
    before = Record.in_config_of(folder)
    looked = check_fit(folder, patch.model)
    clear(out)
    _check_out(folder, out, force)
    files, left_out = members(folder)
    rewritten = holding(folder, folded)
    out.parent.mkdir(parents=True, exist_ok=True)
    with workplace(out) as place:
        built = place / BUILT
        built.mkdir()
        whole = [path for path in files if path not in rewritten]
        kind = _carry(folder, whole, built, link, sum(path.stat().st_size for path in rewritten))
        config = completed(raw, patch.model.config, patch.configs)
        write_json(built / "config.json", config, sort_keys=True)
        _record(before, patch, temperature).write(built)
        _raise_tokenizer_limit(folder, built, patch.target_length)
        _check_written(built, patch)
        fold(rewritten, built, folded, patch.rope.dim, temperature**2)
        _check_out(folder, out, force)  # another run may have been faster
        put(built, out)
    _tell(folder, left_out, looked)
    return kind


def _tell(folder: Path, left_out: list[str], looked: bool) -> None:
    """Warn of what was not copied, and not looked into."""
    if left_out:
        warnings.warn(
            f"left out, as links that lead out of {folder}: {', '.join(left_out)}; copy the files "
            "themselves if they belong to the checkpoint",
            stacklevel=3,
        )
    if not looked:
        warnings.warn(
            f"whether the weights in {folder} fit its config was not looked into: they are "
            "pickles, or quantised, or in a layout of their own",
            stacklevel=3,
        )


def _raw(folder: Path, patch: Patch) -> dict[str, Any]:
    """The config of a checkpoint that a patch can be written into.

    Raises:
        ValueError: It cannot.
    """
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
    return raw


def _record(before: Record | None, patch: Patch, temperature: float) -> Record:
    """The record of a patch, on top of what the checkpoint itself records."""
    found = Record.of(patch.model)
    assert found is not None  # it is patched
    record = replace(found, folded_temperature=temperature)
    return record if before is None else record.after(before)


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


def _check_out(folder: Path, out: Path, force: bool) -> None:
    source, target = folder.resolve(), out.resolve()
    if source == target or target in source.parents:
        raise FileExistsError(f"{out} holds the checkpoint that is read; write elsewhere")
    if source in target.parents:
        raise FileExistsError(f"{out} lies in the checkpoint that is read; write elsewhere")
    if out.is_symlink() and not out.exists():
        raise FileExistsError(f"{out} is a link to nothing; remove it, or write elsewhere")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "config.json").is_file():
        raise FileExistsError(f"{out} exists and is not a checkpoint, so it is not replaced")
    if "model_type" not in read_json(out / "config.json"):
        raise FileExistsError(f"{out} exists and is not a checkpoint, so it is not replaced")
    if not force:
        raise FileExistsError(f"{out} exists; --force replaces it")
    if name := stranger(out, folder):
        raise FileExistsError(
            f"{out} holds {name}, which is not a file of a checkpoint and would be lost; move it "
            "away, or write elsewhere"
        )


def _carry(folder: Path, files: list[Path], built: Path, link: bool, more: int) -> str:
    """Provide weights, and copy any other file, which a user may want to edit."""
    pairs = [(path, built / path.relative_to(folder)) for path in files]
    weights = [pair for pair in pairs if pair[0].suffix in WEIGHTS]
    kind = provide(weights, built.parents[1], link=link, more=more)
    for source, target in pairs:
        if source.suffix not in WEIGHTS:
            target.parent.mkdir(exist_ok=True)
            with naming(target):
                shutil.copyfile(source, target)
    return kind


def _raise_tokenizer_limit(folder: Path, built: Path, length: int) -> None:
    """Let the tokenizer pass `length` tokens; engines take the smaller of the limits."""
    if not (folder / _TOKENIZER).is_file():
        return
    settings = read_json(folder / _TOKENIZER)
    limit = settings.get("model_max_length")
    if isinstance(limit, (int, float)) and limit < length:  # a tokenizer may have none
        settings["model_max_length"] = length
        write_json(built / _TOKENIZER, settings)
