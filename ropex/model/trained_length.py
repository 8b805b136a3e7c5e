"""One policy for the trained length: what the caller states, or what config.json states.

transformers fills in the default of a family where a file says nothing, and 2048 or 131072 tokens
by default are a guess. A config that was made in memory was stated by whoever made it, and the
default in code that comes with a checkpoint is stated by that checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ropex.files.untrusted import read_json
from ropex.model.sites.base import Site

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_stated(model: Any, site: Site, given: int | None) -> None:
    """Refuse to take the default of a family for the trained length.

    Args:
        model: The model.
        site: A table of it, which knows what its family calls the length.
        given: What the caller states; None if nothing.

    Raises:
        ValueError: Neither the caller nor the file of the model's config states it.
    """
    own_code = type(model.config).__module__.startswith("transformers_modules")
    file = None if given is not None or own_code else _config_file(model)
    if file is None or _states(read_json(file), site):
        return
    raise ValueError(
        f"{file} does not say the trained length in a number (max_position_embeddings), and the "
        f"default of {model.config.model_type} would be a guess; give --trained-length N "
        "(trained_length=N)"
    )


def _states(raw: dict[str, Any], site: Site) -> bool:
    names = {*site.lengths, *(site.config.attribute_map.get(name, name) for name in site.lengths)}
    parts = (raw, raw.get("text_config") or {})
    return any(isinstance(part.get(name), (int, float)) for part in parts for name in names)


def _config_file(model: Any) -> Path | None:
    """The file that the config was read from; None if it was read from none that is still there."""
    from huggingface_hub import try_to_load_from_cache

    name = str(getattr(model.config, "_name_or_path", "") or "")
    if (Path(name) / "config.json").is_file():
        return Path(name) / "config.json"
    revision = getattr(model.config, "_commit_hash", None)
    if not name or revision is None or not _HUB_ID.fullmatch(name):
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None
