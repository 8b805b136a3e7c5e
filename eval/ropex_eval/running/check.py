"""Proof, on the user's own model, that the shortcuts of the harness change no number."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import ropex
from ropex.strategies.base import Strategy
from ropex_eval.measure import losses as nll
from ropex_eval.measure.feed_forward import in_rows
from ropex_eval.measure.losses import Scorer
from ropex_eval.running.run import run
from ropex_eval.study.passes import Pass, rows, wanted
from ropex_eval.study.store import Store
from ropex_eval.study.study import Study
from ropex_eval.study.table import Table

_SHORTEST, _LONGEST = 32, 8192  # tokens: all logits of a text are held
_DECODED = 16
_EXACT, _ROUNDED = 1e-4, 5e-2  # nats a token, in float32 and in shorter number types


@dataclass(frozen=True)
class Finding:
    """What one check has seen.

    Attributes:
        name: What was checked.
        difference: In nats a token: the largest in float32, the mean in a shorter number type, in
            which single tokens are far off anyhow; None where none was measured.
        passed: Whether it holds.
        note: What there is to say.
    """

    name: str
    difference: float | None
    passed: bool
    note: str = ""


def require_checkable(length: int) -> None:
    """Raise a ValueError for texts of too few or too many tokens to be checked."""
    if not _SHORTEST <= length <= _LONGEST:
        raise ValueError(
            f"texts of {length} tokens cannot be checked, only of {_SHORTEST} to {_LONGEST} "
            "(--lengths, --excerpt): each is read some twenty times, and all its logits are held"
        )


class Checker:
    """The checks of one loaded model.

    Args:
        study: Model, text and lengths; a few hundred tokens tell.
        scorer: Of the loaded model.
    """

    def __init__(self, study: Study, scorer: Scorer) -> None:
        self.study, self.scorer, self.model = study, scorer, scorer.model
        corpus = study.corpus
        self.bos = corpus.bos
        ids = corpus.excerpts[0].ids
        self.ids = ids if self.bos is None else torch.cat([ids.new_tensor([self.bos]), ids])
        self.exact = self.model.dtype in (torch.float32, torch.float64)

    def run(self, strategies: Sequence[Strategy]) -> Iterator[Finding]:
        """All checks, as they are finished."""
        yield self.bos_once()
        yield self.head()
        yield self.loss()
        yield self.feed_forward()
        yield from self.resume(strategies)
        for strategy in strategies:
            with self.study.patched(self.model, strategy, len(self.ids)):
                yield self.prefix(strategy)
                yield self.pieces(strategy)
                yield self.batch(strategy)
                yield self.decoding(strategy)
            yield self.held(strategy)

    def bos_once(self) -> Finding:
        """One BOS in front, and none in the text."""
        if self.bos is None:
            return Finding("no BOS is asked for", None, True)
        times = int((self.ids == self.bos).sum())
        return Finding("BOS stands once, in front", None, times == 1, f"{times} times")

    def head(self) -> Finding:
        """What the scorer makes of logits against the model's own."""
        if not self.scorer.head_alone:
            return Finding("head", 0.0, True, "the model's own forward is used")
        return self._compared("head alone = the model's logits", self._nll(), self._from_logits())

    def loss(self) -> Finding:
        """The loss is taken in float32, whatever the model's number type."""
        logits, goals = self._logits(self.ids)[:-1], self._goals()
        exact = -logits.double().log_softmax(-1).gather(1, goals[:, None])[:, 0]
        apart = float((nll.nll_of(logits, goals).double() - exact).abs().max())
        return Finding("loss in float32 = in float64", apart, apart <= _EXACT)

    def feed_forward(self) -> Finding:
        """A few rows at a time against all at once."""
        parts = self.scorer.feed_forward
        with in_rows(parts, rows=max(1, len(self.ids) // 3)):
            rows = self._nll()
        note = f"{len(parts)} modules"
        return self._compared("feed-forward in rows = at once", rows, self._nll(), note=note)

    def prefix(self, strategy: Strategy) -> Finding:
        """One pass for all lengths against a pass of its own for a shorter one."""
        half = len(self.ids) // 2
        short = self._nll(self.ids[:half])
        return self._compared(f"{strategy}: prefix = own pass", self._nll()[: half - 1], short)

    def pieces(self, strategy: Strategy) -> Finding:
        """Read in pieces, through the key-value cache, against at once."""
        name = f"{strategy}: pieces = at once"
        if not self.scorer.chunkable:
            return Finding(name, None, True, "this model is never read in pieces")
        return self._compared(name, self._nll(chunk=len(self.ids) // 3), self._nll())

    def batch(self, strategy: Strategy) -> Finding:
        """Side by side with another text against alone."""
        both = torch.stack([self.ids, self.ids.flip(0)])
        goals = functional.pad(both[:, 1:], (0, 1))
        together = self.scorer.nll(both, goals, ((0, len(self.ids) - 1),))[0]
        return self._compared(f"{strategy}: side by side = alone", together, self._nll())

    def decoding(self, strategy: Strategy) -> Finding:
        """Token by token, with the cache, against at once."""
        name, start = f"{strategy}: decoding = prefill", len(self.ids) - _DECODED
        if not self.scorer.chunkable:
            return Finding(name, None, True, "this model has no cache that can be continued")
        with torch.no_grad():
            output = self.model(self._on(self.ids[:start]), use_cache=True)
            steps = [output.logits[0, -1]]
            for place in range(start, len(self.ids) - 1):
                cache = output.past_key_values
                token = self._on(self.ids[place : place + 1])
                output = self.model(token, past_key_values=cache, use_cache=True)
                steps.append(output.logits[0, -1])
        decoded = functional.cross_entropy(
            torch.stack(steps).float(), self._goals()[start - 1 :], reduction="none"
        )
        return self._compared(name, decoded, self._from_logits()[start - 1 :])

    def held(self, strategy: Strategy) -> Finding:
        """As the harness holds it at a length, against as a user patches the model."""
        settings = {
            "trained_length": self.study.trained_length,
            "lift_sliding_window": self.study.lift_sliding_window,
        }
        with ropex.patch(self.model, strategy, **settings):  # type: ignore[arg-type]
            live = self._from_logits()
        with self.study.patched(self.model, strategy, len(self.ids)):
            return self._compared(f"{strategy}: measured = patched", self._from_logits(), live)

    def resume(self, strategies: Sequence[Strategy]) -> Iterator[Finding]:
        """What a run has stored, and what comes of one that lost some of its files."""
        with tempfile.TemporaryDirectory() as folder:
            study = replace(self.study, load=lambda: self.model)
            fresh = run(study, strategies, Path(folder))
            yield self._stored(Store(Path(folder) / "nll"), strategies)
            for path in sorted(Path(folder).glob("nll/*"))[::2]:
                path.unlink()
            again = run(study, strategies, Path(folder))
        yield Finding("resumed = fresh", 0.0, again.to_json() == fresh.to_json(), "byte by byte")

    def _stored(self, store: Store, strategies: Sequence[Strategy]) -> Finding:
        """Each number of the first excerpt, looked up, against a pass that reads it."""
        corpus, ours, plain = self.study.corpus, [], []
        for strategy in strategies:
            table = Table(corpus, self.study.keys(strategy), store)
            for span in wanted(corpus.text, self.study.protocol):
                first, last = rows(span)
                each = Pass(0, span.start, span.bos, span.length, span.length, ((first, last),))
                with self.study.patched(self.model, strategy, span.length):
                    plain.append(self._nll(each.ids(corpus))[first:last])
                ours.append(table.nll(0, span))
        return self._compared("stored = read", torch.cat(ours), torch.cat(plain))

    def _nll(self, ids: Tensor | None = None, chunk: int | None = None) -> Tensor:
        ids = self.ids if ids is None else ids
        goals = functional.pad(ids[1:], (0, 1))
        return self.scorer.nll(ids[None], goals[None], ((0, len(ids) - 1),), chunk)[0]

    def _logits(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.model(self._on(ids), use_cache=False).logits[0]
        return logits

    def _from_logits(self) -> Tensor:
        logits = self._logits(self.ids)[:-1].float()
        return functional.cross_entropy(logits, self._goals(), reduction="none")

    def _goals(self) -> Tensor:
        return self.ids[1:].to(self.scorer.device)

    def _on(self, ids: Tensor) -> Tensor:
        return ids[None].to(self.scorer.device)

    def _compared(self, name: str, ours: Tensor, plain: Tensor, note: str = "") -> Finding:
        apart = (ours.double().cpu() - plain.double().cpu()).abs()
        seen = float(apart.max() if self.exact else apart.mean())
        return Finding(name, seen, seen <= (_EXACT if self.exact else _ROUNDED), note)


def prove(
    study: Study, strategies: Sequence[Strategy], seen: Callable[[Finding], None]
) -> list[Finding]:
    """All checks of a study; `seen` is called with each finding as it is made."""
    found = []
    for finding in Checker(study, Scorer(study.load())).run(strategies):
        seen(finding)
        found.append(finding)
    return found


def described(finding: Finding) -> str:
    """A finding in one line."""
    seen = "" if finding.difference is None else f"{finding.difference:.1e} nats"
    parts = [part for part in (seen, finding.note) if part]
    return f"{'ok  ' if finding.passed else 'FAIL'}  {finding.name}: {', '.join(parts) or 'yes'}"
