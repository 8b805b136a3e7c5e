"""Rules on what lies beside the config: weights, and the record of a patched training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ropex.config.edits import shown
from ropex.config.entry import Entry
from ropex.config.parts import NOTATIONS
from ropex.config.values import MAX, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.reading import ADAPTER, CONFIG, RECORD
from ropex.doctor.weights import wanted_tensors
from ropex.engines.facts import ENGINES, TRANSFORMERS

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

_ROUNDED = ("BF16", "F16", "F8_E4M3", "F8_E5M2")
# Of a record: its keys, and what they hold.
_RECORD = {
    "strategy": str, "trained_length": int, "target_length": int, "inv_freq_sha256": str,
    "versions": dict,
}  # fmt: skip


def _rounded_table(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Rotary tables in the weights have float32 at least."""
    rounded = [table for table in checkpoint.tables if table.dtype in _ROUNDED]
    if rounded:
        first = rounded[0]
        yield Problem(
            first.file,
            f"{len(rounded)} rotary tables are saved in {first.dtype}, {shown(first.name)} first: "
            "rounding moves far positions by whole turns in a program that loads them",
            advice="load the model with a current transformers, which works tables out from the "
            "config, and save it again",
        )


def _misfit(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Weights have every tensor that the config asks for, in its shape."""
    config = checkpoint.documents.get(CONFIG, {})
    held = {_full(each.name): each for each in checkpoint.tensors}
    wanted = wanted_tensors(config) if held else {}
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    missing = sorted({*checkpoint.absent, *(wanted.keys() - held.keys())} - tied)
    if missing:
        yield Problem(
            CONFIG,
            f"the weights lack {len(missing)} tensors, {shown(missing[0])} first: the model cannot "
            "be loaded, or has random numbers there",
            advice="get the files again",
        )
    for name in sorted(wanted.keys() & held.keys()):
        if (shape := held[name].shape) != wanted[name]:
            yield Problem(
                held[name].file,
                f"{shown(name)} has the shape {list(shape)}, and the config asks for "
                f"{list(wanted[name])}: the model cannot be loaded",
                advice="get config.json and weights of one model",
            )
            return


def _full(name: str) -> str:
    """The name of a tensor in a model with a head; one without saves the rest of it."""
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def _pickled(checkpoint: Checkpoint) -> Iterator[Problem]:
    """Weights are not pickles, which can run code."""
    if checkpoint.pickles:
        yield Problem(
            checkpoint.pickles[0],
            f"{len(checkpoint.pickles)} files are pickles, which can run code when they are loaded;"
            " they were not opened, so their tables were not looked at",
            advice="get safetensors, or convert them where you trust the source",
        )


def _unrecorded(checkpoint: Checkpoint) -> Iterator[Problem]:
    """An adapter says with which rotary embedding it was trained."""
    if ADAPTER in checkpoint.documents and RECORD not in checkpoint.documents:
        yield Problem(
            ADAPTER,
            f"there is no {RECORD}: if the base model was patched in training, nothing says so",
            advice="nothing, if it was not; else patch the base model in the same way before the "
            "adapter is loaded",
        )


def _broken_record(checkpoint: Checkpoint) -> Iterator[Problem]:
    """A record has all its keys, each of its type."""
    record = checkpoint.documents.get(RECORD)
    if record is None:
        return
    wrong = [key for key, kind in _RECORD.items() if not _holds(record.get(key), kind)]
    if wrong:
        yield Problem(
            RECORD,
            f"the record lacks {' and '.join(wrong)}, or has something else there",
            advice="write the record again with the program that trained or patched the model",
        )


def _holds(value: Any, kind: type) -> bool:
    if kind is int:
        return type(value) is int and value > 0
    return isinstance(value, kind) and bool(value)


def _other_base(checkpoint: Checkpoint) -> Iterator[Problem]:
    """The base model of an adapter is as the record says it was in training."""
    record, base = checkpoint.documents.get(RECORD), checkpoint.base
    if record is None or base is None or ADAPTER not in checkpoint.documents:
        return
    trained, target = (positive(record, key) for key in ("trained_length", "target_length"))
    found = positive(base, MAX)
    if trained and target and found and found not in (trained, target):
        yield Problem(
            ADAPTER,
            f"the base model has {MAX} {found:g}; the record says that it was trained at "
            f"{trained:g} and patched to {target:g}",
            advice="use the base model that the adapter was trained on",
        )
    if found and found == trained and any(_scales(base.get(key)) for key in NOTATIONS):
        yield Problem(
            ADAPTER,
            f"the base model is scaled by its own config, and {RECORD} scales it once more",
            advice="patch the base model as it was before, or check that it was scaled in training",
            severity="note",
        )


def _scales(entry: Any) -> bool:
    """Whether an entry stretches a model; Llama 3.1 was trained with its own at its full length."""
    found = Entry.alone(entry if isinstance(entry, dict) else {})
    return found.kind != "llama3" and (found.factor or 1) > 1


FILE_RULES = (
    Rule("rounded-table", "warning", (*TRANSFORMERS, "sglang"), _rounded_table),
    Rule("weights-misfit", "error", ENGINES, _misfit),
    Rule("pickled-weights", "note", ENGINES, _pickled),
)
ADAPTER_RULES = (
    Rule("unrecorded-adapter", "note", ENGINES, _unrecorded),
    Rule("broken-record", "error", TRANSFORMERS, _broken_record),
    Rule("other-base", "warning", ENGINES, _other_base),
)
