"""Rules on lengths: of training, of the scaled model, of windows and of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ropex.config.edits import Edit, shown
from ropex.config.entry import Entry, entries_of
from ropex.config.families import NULL_HEADS, UNIFORM_WINDOW
from ropex.config.parts import Part
from ropex.config.values import MAX, ORIGINAL, close, positive
from ropex.doctor.findings import Problem, Rule
from ropex.doctor.parts import on_entries, on_parts, parts
from ropex.engines.facts import ENGINES, MULTIPLYING, TRANSFORMERS

if TYPE_CHECKING:
    from ropex.doctor.reading import Checkpoint

_NEEDS_ORIGINAL = ("yarn", "llama3", "longrope")
_ROUNDING = 1.01  # max may be the factor times the trained length, rounded to a round number
_LLAMA_31 = 8192  # what the converter of llama.cpp takes where the root says nothing
_NEEDS_HEAD_DIM = ("yarn", "dynamic", "longrope")


@on_entries
def _missing_original(entry: Entry) -> Iterator[Problem]:
    """A type that goes by the trained length states it in its entry."""
    if entry.kind not in _NEEDS_ORIGINAL or entry.raw.get(ORIGINAL) is not None:
        return
    root = entry.part.raw.get(ORIGINAL)
    if root is not None and entry.kind == "longrope":  # as Phi-3 has it
        return
    known = entry.part.trained if root is None else positive(entry.part.raw, ORIGINAL)
    edits = (entry.set(ORIGINAL, int(known)),) if known and float(known).is_integer() else ()
    yield Problem(
        entry.where,
        f"the {entry.kind} type lacks {ORIGINAL}: transformers takes {MAX} for the trained length, "
        "or stops, and other engines take values of their own",
        edits,
        "give --trained-length with the tokens that the model was trained at before it was "
        f"scaled; {MAX} if that was not raised",
    )


@on_entries
def _original_disagrees(entry: Entry) -> Iterator[Problem]:
    """The trained length is the same in the entry and at the root."""
    inner, root = positive(entry.raw, ORIGINAL), positive(entry.part.raw, ORIGINAL)
    if entry.kind not in _NEEDS_ORIGINAL or not inner or not root or inner == root:
        return
    edits: tuple[Edit, ...] = ()
    new = _right(entry, inner, root)
    if new is not None:
        others = {positive(each.raw, ORIGINAL) for each in entries_of(entry.part)}
        if new != inner:
            edits = (entry.set(ORIGINAL, new),)
        elif others <= {inner, None}:  # else entries would pull the root to and fro
            edits = (entry.part.set(ORIGINAL, to=new),)
    yield Problem(
        entry.where,
        f"{ORIGINAL} is {inner:g} here and {root:g} at the root: engines differ in which they read",
        edits,
        "write the tokens that the model was trained at in both places",
    )


def _right(entry: Entry, *lengths: float) -> int | None:
    """Which of two trained lengths is meant: the known one, or the one that the factor confirms."""
    if entry.part.trained in lengths:
        return entry.part.trained
    if not entry.factor or not entry.longest or entry.kind == "llama3":
        return None
    right = [each for each in lengths if close(each * entry.factor, entry.longest)]
    return int(right[0]) if len(right) == 1 and right[0].is_integer() else None


@on_entries
def _original_above_max(entry: Entry) -> Iterator[Problem]:
    """The trained length is not above the scaled one, and below it where llama3 scales."""
    original, longest = entry.original, entry.longest
    if entry.kind not in _NEEDS_ORIGINAL or not original or not longest:
        return
    llama3, trained = entry.kind == "llama3", entry.part.trained
    if _not_below(entry) if llama3 else original > longest:
        yield Problem(
            entry.where,
            f"{ORIGINAL} {original:g} is {'not below' if llama3 else 'above'} {MAX} {longest:g}",
            (entry.set(ORIGINAL, trained),) if trained and trained <= longest else (),
            advice=f"write the trained length in {ORIGINAL}, the scaled one in {MAX}",
            severity="warning" if llama3 else None,
        )


def _not_below(entry: Entry) -> bool:
    """Whether the trained length of a llama3 entry looks like the scaled one.

    Not that of Llama 3.1 itself, which somebody may keep to as well.
    """
    original, longest = entry.original, entry.longest
    known = original in (_LLAMA_31, entry.part.trained)
    return bool(original and longest and original >= longest and entry.scaled and not known)


@on_entries
def _original_at_root(entry: Entry) -> Iterator[Problem]:
    """The trained length also stands at the root, where some programs look for it alone."""
    inner = positive(entry.raw, ORIGINAL)
    if not inner or entry.part.raw.get(ORIGINAL) is not None or entry.part.remote:
        return
    if entry.kind == "longrope" and inner != entry.longest:
        engine = "transformers4"
        why = f"transformers 4 looks for it there alone, and switches at {MAX} instead"
    elif entry.kind == "llama3" and inner != _LLAMA_31 and not _not_below(entry):
        engine = "llama.cpp"
        why = f"its converter looks for it there alone, and takes {_LLAMA_31} instead"
    else:
        return
    edits = (entry.part.set(ORIGINAL, to=int(inner)),) if inner.is_integer() else ()
    message = f"{ORIGINAL} is missing at the root: {why}"
    yield Problem(entry.where, message, edits, engines=(engine,))


@on_entries
def _max_beyond_scaling(entry: Entry) -> Iterator[Problem]:
    """YaRN's factor times the trained length reaches max_position_embeddings."""
    factor, original, longest = entry.factor, entry.original, entry.longest
    if entry.kind != "yarn" or not (factor and original and longest):
        return
    if longest > factor * original * _ROUNDING:
        yield Problem(
            entry.where,
            f"{MAX} is {longest:g}, but {original:g} trained tokens times the factor {factor:g} "
            f"reach {factor * original:g}: beyond, angles are new to the model",
            advice=f"write the factor {longest / original:g}, or {MAX} {int(factor * original)}",
        )


@on_entries
def _raised_max(entry: Entry) -> Iterator[Problem]:
    """A dynamic or linear entry stands beside the trained length in max_position_embeddings."""
    original, longest = entry.original or entry.part.trained, entry.longest
    if entry.kind not in ("dynamic", "linear") or not entry.scaled:
        return
    if not original or not longest or original >= longest:
        return
    edits = (entry.part.set(MAX, to=int(original)),) if float(original).is_integer() else ()
    dynamic = entry.kind == "dynamic"
    yield Problem(
        entry.where,
        f"{MAX} was raised from {original:g} to {longest:g}: "
        + (
            "the dynamic type takes it for the trained length, so nothing is scaled up to it"
            if dynamic
            else "vLLM and SGLang multiply it by the factor once more"
        ),
        edits,
        severity="error" if dynamic else "warning",
        engines=TRANSFORMERS if dynamic else MULTIPLYING,
    )


@on_parts
def _sliding_window(part: Part) -> Iterator[Problem]:
    """The window of attention, where all layers have it, is not below the scaled length."""
    window = positive(part.raw, "sliding_window")
    promised = part.target or max(map(_promised, _scaled(part)), default=0)
    if window is None or part.model_type not in UNIFORM_WINDOW or window >= promised:
        return
    layers = part.raw.get("layer_types")
    if isinstance(layers, list) and any(kind != "sliding_attention" for kind in layers):
        return
    yield Problem(
        part.where("sliding_window"),
        f"every token sees the last {window:g} only, and the model is scaled to {promised:g}",
        advice="keep the window if the model was trained so; else set it to null, or patch with "
        "`ropex patch --lift-sliding-window`",
    )


def _tokenizer_limit(checkpoint: Checkpoint) -> Iterator[Problem]:
    """The tokenizer lets the scaled length pass."""
    settings = checkpoint.documents.get("tokenizer_config.json", {})
    limit = positive(settings, "model_max_length")
    said = settings.get("model_max_length")
    if said is not None and (isinstance(said, bool) or not isinstance(said, (int, float))):
        yield Problem(
            "tokenizer_config.json: model_max_length",
            f"model_max_length is {shown(said)}, which is not a number, so no text can be read",
            advice="write how many tokens the model reads",
            severity="error",
            engines=ENGINES,
        )
    entries = [entry for part in parts(checkpoint) for entry in _scaled(part)]
    lengths = [positive(part.raw, MAX) or 0 for part in parts(checkpoint)]
    promised = checkpoint.target or max([*lengths, *map(_promised, entries)], default=0)
    if limit is None or limit >= promised:
        return
    trained = [entry.original for entry in entries if entry.original]
    left_behind = bool(checkpoint.target) or any(limit <= each for each in trained)
    new = Edit("tokenizer_config.json", ("model_max_length",), int(promised))
    yield Problem(
        "tokenizer_config.json: model_max_length",
        f"the tokenizer's limit is {limit:g} and the model's {promised:g}: vLLM takes the smaller",
        (new,) if left_behind else (),
        "raise it, unless longer texts are not meant to be read",
        severity=None if left_behind else "note",
    )


def _scaled(part: Part) -> list[Entry]:
    return [entry for entry in entries_of(part) if entry.scaled]


def _promised(entry: Entry) -> float:
    """Tokens that an entry says the model is to reach.

    Not by the factor of the linear type: some files have it beside the length before scaling, some
    beside the one after.
    """
    longest = entry.longest or 0.0
    if entry.kind == "yarn" and entry.original and entry.factor:
        return max(longest, entry.original * entry.factor)
    return longest


@on_parts
def _head_dim_null(part: Part) -> Iterator[Problem]:
    """A head_dim of null does not meet a type that multiplies by it."""
    if part.model_type not in NULL_HEADS or part.raw.get("head_dim", 0) is not None:
        return
    if not any(entry.kind in _NEEDS_HEAD_DIM for entry in entries_of(part)):
        return
    hidden, heads = positive(part.raw, "hidden_size"), positive(part.raw, "num_attention_heads")
    edits = (
        (part.set("head_dim", to=int(hidden // heads)),) if hidden and heads and heads >= 1 else ()
    )
    yield Problem(
        part.where("head_dim"),
        "head_dim is null, which transformers multiplies by for this type, and stops",
        edits,
        "write the size of one attention head",
    )


LENGTH_RULES = (
    Rule("original-disagrees", "error", ENGINES, _original_disagrees),
    Rule("missing-original", "error", ENGINES, _missing_original),
    Rule("original-above-max", "error", ENGINES, _original_above_max),
    Rule("original-at-root", "warning", ("transformers4", "llama.cpp"), _original_at_root),
    Rule("max-beyond-scaling", "warning", ENGINES, _max_beyond_scaling),
    Rule("raised-max", "error", (*TRANSFORMERS, *MULTIPLYING), _raised_max),
    Rule("sliding-window", "warning", ENGINES, _sliding_window),
    Rule("tokenizer-limit", "warning", ("vllm",), _tokenizer_limit),
    Rule("head-dim-null", "error", TRANSFORMERS, _head_dim_null),
)
