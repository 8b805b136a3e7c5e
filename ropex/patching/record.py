"""The record beside a saved model or adapter: the strategy that it was saved under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ropex.errors import UnsupportedModel
from ropex.files.writing import write_json
from ropex.model.rotary import sites
from ropex.patching.plan import Planned
from ropex.patching.stack import JOINT, stack
from ropex.sizes import LONGEST
from ropex.version import __version__

NAME = "ropex.json"


@dataclass(frozen=True)
class Record:
    """What `ropex.json` holds.

    Attributes:
        strategy: Text form; of patches over patches, the first one first, with " then " between.
        trained_length: Tokens that the model was trained at.
        target_length: Tokens that it is meant to reach.
        inv_freq_sha256: Hash of every table in float32, so that a reader notices a different one.
        in_config: Whether the config beside it says all of that, so that nothing is left to apply.
        folded_temperature: What cos and sin would be multiplied by, and the weights of queries are
            instead, by its square; the text form then ends with its inverse.
        versions: Of ropex, transformers and torch.
    """

    strategy: str
    trained_length: int
    target_length: int
    inv_freq_sha256: str
    in_config: bool = True
    folded_temperature: float = 1.0
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Record | None:
        """The record of a patched model; None if it is not patched."""
        found = sites(model)
        applied = stack(found)
        if not applied or applied[-1].handle is None:
            return None
        last = applied[-1].handle
        return cls(
            JOINT.join(each.strategy for each in applied),
            (applied[0].handle or last).state.rope.trained_length,
            last.state.target_length,
            fingerprint(last.state.planned),
            applied[-1].in_config,
            versions=versions(),
        )

    def after(self, before: Record) -> Record:
        """This record, for a model that was loaded from a folder with the record `before`."""
        joined = f"{before.strategy}{JOINT}{self.strategy}"
        return replace(self, strategy=joined, trained_length=before.trained_length)

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order in which they are applied."""
        return self.strategy.split(JOINT)

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder; None if there is none.

        Raises:
            ValueError: It is damaged.
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            known = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
            record = cls(**known)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({str(error)[:200]})") from None
        if not isinstance(record.strategy, str):
            raise ValueError(f"{path} is damaged (its strategy is no text)")
        for key in ("trained_length", "target_length"):
            value = getattr(record, key)
            if type(value) is not int or not 0 < value <= LONGEST:
                raise ValueError(f"{path} is damaged (its {key} is no number of tokens)")
        return record

    @classmethod
    def in_config_of(cls, folder: Path) -> Record | None:
        """The record of a checkpoint that a new strategy starts from; None without one.

        Raises:
            ValueError: It is damaged, or its config says less than it, so that the strategy would
                start from a different model than the record describes.
        """
        record = cls.read(folder)
        if record is not None and not record.in_config:
            raise ValueError(
                f"{folder / NAME} says {record.strategy}, which is applied after loading, and no "
                "config can say; another strategy would start from the model without it, so "
                f"remove {NAME} if that is what you want"
            )
        return record

    def write(self, folder: Path) -> None:
        """Write `ropex.json` into a folder."""
        write_json(folder / NAME, asdict(self))


def write_record(model: Any, folder: Path) -> None:
    """Write the record of a patched model; of one that is not, or a part without rotation, none."""
    try:
        record = Record.of(model)
    except UnsupportedModel:
        return
    if record is not None:
        record.write(folder)


def _scales(each: Planned) -> str:
    scale = float(each.plan.attention_scale)
    return f"{each.site.layer_type} {scale:.9g} {each.plan.attention}"


def fingerprint(
    planned: tuple[Planned, ...],
    said: Callable[[Planned], str] = _scales,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Hash of the tables that patches plan, and of what is said of each.

    Files hold these hashes, so each kind of file keeps what it has said: a record what a reader can
    see on the loaded model, a study (`ropex_eval.study`) all that decides a number.

    Args:
        planned: Of one patch, or of several.
        said: What counts besides the table; by default its layers and scales.
        dtype: The table is hashed in it.
    """
    digest = hashlib.sha256()
    for each in planned:
        digest.update(said(each).encode())
        digest.update(each.plan.inv_freq.to(dtype).cpu().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what has computed it."""
    import transformers

    return {
        "ropex": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
