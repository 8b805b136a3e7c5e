"""A temperature in the weights: for engines that read the frequencies of a config, and no more.

cos and sin multiplied by `a` multiply the logits of attention by `a` squared, and so does a query
projection whose rotated rows are multiplied by it. Exact but for the rounding of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ropex.errors import UnsupportedModel
from ropex.files.untrusted import read_json
from ropex.patching.handle import Patch
from ropex.strategies.base import Strategy
from ropex.strategies.composed import Composed
from ropex.strategies.temperature import Temperature

_INDEX = "model.safetensors.index.json"


def without_temperature(chosen: Strategy, temperature: float) -> Strategy:
    """A strategy with the same frequencies that leaves cos and sin as they are."""
    if temperature == 1:
        return chosen
    parts = chosen.parts if isinstance(chosen, Composed) else (chosen,)
    return Composed((*parts, Temperature(1 / temperature)))


def foldable(patch: Patch) -> dict[str, int]:
    """The weights that a temperature is folded into, and the size of their heads.

    Args:
        patch: Of a model, which may be a skeleton.

    Raises:
        UnsupportedModel: The model's queries are not made by a projection of their own, or layers
            rotate differently.
    """
    model, planned = patch.model, patch.planned
    if any(each.kept for each in planned) or len({each.site.layer_type for each in planned}) > 1:
        raise UnsupportedModel(f"{_type(model)}: layers rotate differently, so nothing is folded")
    found = {name: size for name, size in _queries(model)}
    if not found:
        raise UnsupportedModel(
            f"{_type(model)} has no q_proj of its own in each layer, so its temperature cannot be "
            "folded into the weights"
        )
    return found


def _queries(model: Any) -> Iterator[tuple[str, int]]:
    for name, module in model.named_modules():
        projection, norm = getattr(module, "q_proj", None), getattr(module, "q_norm", None)
        size = getattr(module, "head_dim", None)
        if not isinstance(projection, nn.Linear) or not isinstance(size, int):
            continue
        if norm is None:
            yield f"{name}.q_proj.weight", size
            if projection.bias is not None:
                yield f"{name}.q_proj.bias", size
        elif _is_linear(norm, size):  # a norm behind the projection would undo it there
            yield f"{name}.q_norm.weight", size
        else:
            raise UnsupportedModel(
                f"{_type(model)} normalises its queries in a way that no temperature can be folded "
                "into"
            )


def _is_linear(norm: nn.Module, size: int) -> bool:
    """Whether a norm of one head multiplies by its weight, and not by one plus it (Gemma)."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.shape != (size,):
        return False
    states = torch.linspace(-1, 2, size)[None]
    copy = type(norm).__new__(type(norm))
    copy.__dict__.update(norm.__dict__)
    answers = []
    for value in (1.0, 2.0):
        copy._parameters = {"weight": nn.Parameter(torch.full((size,), value))}
        with torch.no_grad():
            answers.append(copy(states))
    return bool(torch.allclose(2 * answers[0], answers[1]))


def holding(folder: Path, weights: dict[str, int]) -> dict[Path, list[str]]:
    """The files of a checkpoint that hold some weights, and the weights in each.

    Args:
        folder: The checkpoint.
        weights: Names of tensors, and the size of their heads.

    Raises:
        UnsupportedModel: The weights are not safetensors, or have other names.
        ValueError: A file is damaged.
    """
    left, found = set(weights), {}
    for path in _files(folder) if weights else ():
        if here := left & _names(path):
            found[path] = sorted(here)
            left -= here
    if left:
        raise UnsupportedModel(
            f"{folder} holds no {min(left)} in safetensors, so the temperature cannot be folded"
        )
    return found


def fold(
    files: dict[Path, list[str]], out: Path, sizes: dict[str, int], rotated: int, factor: float
) -> None:
    """Write files again, with the rotated rows of query weights multiplied.

    Args:
        files: What `holding` answers; they are only read.
        out: Folder that the new files go to.
        sizes: Of the heads of each weight.
        rotated: Dimensions of a head that rotate; they come first.
        factor: What their logits are multiplied by.

    Raises:
        OSError: A file cannot be written.
    """
    for path, names in files.items():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name in names:
            tensors[name] = _scaled(tensors[name], sizes[name], rotated, factor)
        try:
            save_file(tensors, out / path.name, metadata)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{out / path.name} could not be written: {error}") from error


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    return sorted(folder / shard for shard in set(read_json(index)["weight_map"].values()))


def _names(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _scaled(weight: Tensor, size: int, rotated: int, factor: float) -> Tensor:
    heads = weight.to(torch.float32).reshape(-1, size, *weight.shape[1:]).clone()
    heads[:, :rotated] *= factor
    return heads.reshape(weight.shape).to(weight.dtype).contiguous()


def _type(model: Any) -> str:
    return str(model.config.model_type)
