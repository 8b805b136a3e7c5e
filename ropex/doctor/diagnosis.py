"""All rules, and what they find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ropex.doctor.attention_rules import ATTENTION_RULES
from ropex.doctor.file_rules import ADAPTER_RULES, FILE_RULES
from ropex.doctor.findings import Finding
from ropex.doctor.gguf_rules import GGUF_RULES
from ropex.doctor.layer_rules import LAYER_RULES
from ropex.doctor.length_rules import LENGTH_RULES
from ropex.doctor.notation_rules import NOTATION_RULES
from ropex.doctor.number_rules import NUMBER_RULES
from ropex.doctor.published_rules import PUBLISHED_RULES
from ropex.doctor.reading import Checkpoint, read
from ropex.doctor.type_rules import TYPE_RULES
from ropex.doctor.version_rules import VERSION_RULES
from ropex.engines.facts import engine_name

RULES = (
    *NOTATION_RULES, *NUMBER_RULES, *LAYER_RULES, *TYPE_RULES, *PUBLISHED_RULES, *LENGTH_RULES,
    *ATTENTION_RULES, *VERSION_RULES, *FILE_RULES, *ADAPTER_RULES, *GGUF_RULES,
)  # fmt: skip
"""In the order of fixing: spelling and numbers first, then what compares them."""

_OPEN = "type-keys-disagree"
"""Says that it is not known what the entry means; whatever goes by its meaning waits for that."""


def diagnose(
    path: Path | str, *, engine: str | None = None, trained_length: int | None = None
) -> tuple[Finding, ...]:
    """What is wrong with a checkpoint, an adapter or a GGUF file.

    Args:
        path: A folder, its config.json, or a GGUF file.
        engine: Only what goes wrong there; one of `ropex.engines.ENGINES`.
        trained_length: Tokens that the model was trained at, where no file says it.

    Raises:
        FileNotFoundError: There is nothing to look at.
        ValueError: A file cannot be read safely, or there is no such engine.
    """
    return examine(read(Path(path), trained_length=trained_length), engine=engine)


def examine(checkpoint: Checkpoint, *, engine: str | None = None) -> tuple[Finding, ...]:
    """What is wrong with a checkpoint that has been read."""
    engine = None if engine is None else engine_name(engine)
    found = [finding for rule in RULES for finding in rule.findings(checkpoint)]
    if any(each.rule == _OPEN for each in found):
        found = [_waiting(each) for each in found]
    return tuple(each for each in found if engine is None or engine in each.engines)


def _waiting(finding: Finding) -> Finding:
    """The finding without its edits, which rest on a guess."""
    if not finding.fixable:
        return finding
    return replace(finding, edits=(), fix=f"settle {_OPEN} first, on which this depends")
