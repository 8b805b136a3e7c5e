"""What is said of how far a strategy can be used, and the tests that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN, WORSE, OPEN = "shown", "worse", "open"
"""What a test finds: no worse than allowed; worse than that; neither is shown."""


@dataclass(frozen=True)
class Step:
    """One test of a verdict: a strategy against no scaling at the trained length, on same tokens.

    Attributes:
        start: Tokens of context without scaling.
        end: Tokens of context of the strategy.
        nll: Difference in nats a token; above 0 the strategy is worse.
        se: Standard error, paired by cluster; None from one cluster.
        low: What the difference is above, at 95 %; None from one cluster.
        high: What it is below, at 95 %.
        hurt: Share of documents that lose more than the margin.
        collapsed: Share of documents that lose so much that they count as collapsed.
        outcome: `shown`: no worse than the margin allows; `worse`: shown to be so; else `open`.
    """

    start: int
    end: int
    nll: float
    se: float | None
    low: float | None
    high: float | None
    hurt: float | None
    collapsed: float | None
    outcome: str


@dataclass(frozen=True)
class Verdict:
    """How far a strategy can be used, as far as that is shown; see `ropex_eval.scores.contexts`.

    Attributes:
        strategy: Text form of the strategy.
        safe: Longest context up to which it is shown to cost no more than no scaling at the trained
            length; None if that is shown of none.
        safe_decided: Whether more text could not change that.
        useful: Longest safe context up to which it is shown to cost less; None if there is none.
        useful_decided: Whether more text could not change that.
        clusters_needed: About how many documents would decide the first length that is open; None
            if nothing is open, or that is too close to call.
        steps: The tests, in order of length.
        finite: Whether every loss is a number; if not, there is no verdict.
    """

    strategy: str
    safe: int | None
    safe_decided: bool
    useful: int | None
    useful_decided: bool
    clusters_needed: int | None
    steps: tuple[Step, ...]
    finite: bool = True

    @property
    def open(self) -> Step | None:
        """The test that ended the verdict, where more text could change it."""
        if self.safe_decided or not self.finite:
            return None
        return next((step for step in self.steps if step.outcome != SHOWN), None)
