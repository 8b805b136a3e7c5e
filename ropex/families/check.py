"""Prove on a tiny random model that ropex patches a family, clause by clause."""

from __future__ import annotations

import copy
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import ropex
from ropex.families.settings import TRAINED
from ropex.families.tiny import tiny_model
from ropex.model.rotary import sites
from ropex.patching.handle import Patch

# Both are beyond the windows, chunks and selections of keys of the tiny models.
LENGTH = 40  # tokens, more than the tiny models were "trained" at
SHORT = 24  # tokens, for models whose own tables end where they were trained
ROUNDING = 1e-4  # of the largest logit
SAVED = ("linear:2", "yarn:4", "llama3:4", "ntk:2", "dynamic:4")


@dataclass(frozen=True)
class Outcome:
    """What became of one clause.

    Attributes:
        passed: Whether it holds; None where it does not apply, or ropex refuses.
        detail: What was seen, in a few words.
    """

    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Family:
    """What was found out about one model type.

    Attributes:
        model_type: Its name in transformers.
        status: `rotary`, `no rotary`, or `not built`.
        reason: Why it is not rotary, or was not built.
        tables: Paths of its rotary tables, `*` for the number of a layer.
        outcomes: Clause to outcome, if they were tried.
    """

    model_type: str
    status: str
    reason: str = ""
    tables: tuple[str, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no clause failed."""
        return all(outcome.passed is not False for outcome in self.outcomes.values())


def look(model_type: str) -> Family:
    """Find the rotary tables of a family, on a tiny random model."""
    return _look(model_type)[0]


def check(model_type: str) -> Family:
    """Find the rotary tables of a family, and try every clause of the contract on them."""
    family, model = _look(model_type)
    if family.status != "rotary":
        return family
    outcomes = {}
    for name, clause in CLAUSES.items():
        try:
            with _quiet():
                outcomes[name] = clause(copy.deepcopy(model))
        except Exception as error:  # whatever it is, this clause does not hold
            outcomes[name] = Outcome(False, f"{type(error).__name__}: {error}".split("\n")[0])
    return replace(family, outcomes=outcomes)


def _look(model_type: str) -> tuple[Family, Any]:
    try:
        with _quiet():
            model = tiny_model(model_type)
    except Exception as error:  # optional packages, configs without defaults
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return Family(model_type, "not built", reason), None
    try:
        found = sites(model)
    except ropex.UnsupportedModel as error:
        return Family(model_type, "no rotary", str(error)), None
    names = dict.fromkeys(re.sub(r"\.\d+\b", ".*", str(site)) for site in found)
    return Family(model_type, "rotary", tables=tuple(names)), model


def undone(model: Any) -> Outcome:
    """Clause 1: what changes nothing moves nothing, and a removed patch leaves nothing behind."""
    ids = _tokens(SHORT)
    plain = _logits(model, ids)
    with _patch(model, "none") as patch:
        same = torch.equal(_logits(model, ids), plain)
    same = same and _still(model, ids, plain)
    longer = 2 * patch.rope.trained_length
    for text in ("linear:2", "yarn:4", f"dynamic:length={longer}"):
        with _patch(model, text):
            moved = not torch.equal(_logits(model, ids), plain)
        same = same and moved and torch.equal(_logits(model, ids), plain)
    return Outcome(same)


def _still(model: Any, ids: Tensor, plain: Tensor) -> bool:
    """Whether scaled queries are as they were within the trained length, if they can be scaled."""
    try:
        with _patch(model, "logn"):
            return torch.equal(_logits(model, ids), plain)
    except ropex.UnsupportedModel:
        return True


def verified(model: Any) -> Outcome:
    """Clause 3: the live tables are as planned, and logits move."""
    seen = []
    for text in ("linear:2", "yarn:4"):
        with _patch(model, text) as patch:
            seen.append(patch.verify().logit_change)
    return Outcome(True, f"{min(seen):.2g}")


def kept_exact(model: Any) -> Outcome:
    """Clause 5: `.to(bfloat16)` rounds no frequency."""
    with _patch(model, "yarn:4") as patch:
        model.to(torch.bfloat16)
        wrong = [str(each.site) for each in patch.planned if not each.site.holds(each.plan, SHORT)]
    return Outcome(not wrong, ", ".join(wrong))


def decoded(model: Any) -> Outcome:
    """Clause 6: token by token with a cache, the logits are those of one pass."""
    own, detail = _decoding_error(model, SHORT)
    if own is None:
        return Outcome(None, detail)
    with _patch(model, "yarn:4"):
        error, _ = _decoding_error(model, LENGTH)
    assert error is not None
    if error > ROUNDING and own > ROUNDING:
        return Outcome(None, "transformers' own cache is wrong")
    return Outcome(error <= ROUNDING, f"{error:.1g}")


def unrotated(model: Any) -> Outcome:
    """Clause 6 for strategies that go by the length: un-rotated keys, or a refusal."""
    try:
        with _patch(model, "dynamic:4", cache="unrotated"):
            error, detail = _decoding_error(model, LENGTH)
    except ropex.UnsupportedModel:
        return Outcome(None, "refused")
    if error is None:
        return Outcome(None, detail)
    own, _ = _decoding_error(model, SHORT)
    if error > ROUNDING and own is not None and own > ROUNDING:
        return Outcome(None, "transformers' own cache is wrong")
    return Outcome(error <= ROUNDING, f"{error:.1g}")


def saved(model: Any) -> Outcome:
    """Clauses 4 and 7: what the saved config makes transformers itself compute."""
    ids, alike, said = _tokens(LENGTH), True, []
    for text in SAVED:
        with _patch(model, text) as patch:
            if patch.in_config:
                said.append(patch.strategy.name)
                alike = alike and torch.equal(_logits(model, ids), _logits(_rebuilt(patch), ids))
    return Outcome(alike if said else None, ", ".join(said) or "refused")


def reloaded(model: Any) -> Outcome:
    """Clause 7: `save_pretrained` and `from_pretrained` give the same logits."""
    ids = _tokens(LENGTH)
    for text in ("yarn:4", "linear:2"):
        with _patch(model, text) as patch, tempfile.TemporaryDirectory() as folder:
            if patch.in_config:
                model.save_pretrained(folder)
                again = _realigned(type(model).from_pretrained(folder).eval())
                return Outcome(torch.equal(_logits(model, ids), _logits(again, ids)), text)
    return Outcome(None, "refused")


def _realigned(model: Any) -> Any:
    """The same weights in memory of their own.

    Those that lie in a mapped file begin anywhere, and kernels that differ by alignment round
    otherwise in the last bit.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


CLAUSES: dict[str, Callable[[Any], Outcome]] = {
    "undone": undone,
    "verified": verified,
    "bfloat16": kept_exact,
    "decoded": decoded,
    "unrotated": unrotated,
    "saved": saved,
    "reloaded": reloaded,
}


def _patch(model: Any, text: str, **options: Any) -> Patch:
    """`ropex.patch`, with the trained length of the tiny models where no config says it."""
    try:
        return ropex.patch(model, text, **options)
    except ValueError as error:
        if "trained_length" not in str(error):
            raise
        return ropex.patch(model, text, trained_length=TRAINED, **options)


def _tokens(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 60, (1, length), generator=generator)


@torch.no_grad()
def _logits(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    result: Tensor = model(input_ids=ids, **{"use_cache": False, **inputs}).logits
    return result


def _rebuilt(patch: Patch) -> Any:
    """The model that transformers builds from the config of a patched one, with its weights."""
    with tempfile.TemporaryDirectory() as folder:
        patch.model.config.save_pretrained(folder)
        config = type(patch.model.config).from_pretrained(folder)
        built = type(patch.model)._from_config(config).eval()
    built.load_state_dict(patch.model.state_dict())
    return built


def _decoding_error(model: Any, length: int) -> tuple[float | None, str]:
    """How far decoding with a cache is from one pass, over the largest logit."""
    ids, start = _tokens(length), length - 6
    try:
        whole = _logits(model, ids)[:, start:]
        with torch.no_grad():
            output = model(input_ids=ids[:, :start], use_cache=True)
            steps = []
            for place in range(start, length):
                cache = output.past_key_values
                if not cache:
                    return None, "transformers returns no cache"
                token = ids[:, place : place + 1]
                output = model(input_ids=token, past_key_values=cache, use_cache=True)
                steps.append(output.logits)
    except (AttributeError, IndexError, TypeError) as error:
        return None, f"transformers' own cache fails: {type(error).__name__}"
    return float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max()), ""


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
