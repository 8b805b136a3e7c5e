"""Means and differences with their uncertainty, by clusters: tokens of one document are alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Totals:
    """Sums and their weights, by cluster.

    Attributes:
        sums: Cluster to the sum of what is averaged.
        weights: Cluster to the number of things summed.
        count: Number of tokens that these are about.
    """

    sums: Mapping[str, float]
    weights: Mapping[str, float]
    count: int = 0

    @classmethod
    def of(cls, parts: Iterable[tuple[str, float, float, int]]) -> Totals:
        """Totals of (cluster, sum, weight, tokens), to the bit the same in any order."""
        sums: dict[str, list[float]] = {}
        weights: dict[str, list[float]] = {}
        count = 0
        for cluster, total, weight, tokens in parts:
            sums.setdefault(cluster, []).append(total)
            weights.setdefault(cluster, []).append(weight)
            count += tokens
        return cls(_summed(sums), _summed(weights), count)

    def minus(self, other: Totals) -> Totals:
        """The difference on the same tokens, for a paired comparison."""
        if self.weights != other.weights:
            raise ValueError("these were not taken over the same tokens")
        return Totals(
            {cluster: value - other.sums[cluster] for cluster, value in self.sums.items()},
            self.weights,
            self.count,
        )


def _summed(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {cluster: _sum(values) for cluster, values in parts.items()}


def _sum(values: Iterable[float]) -> float:
    """Exact but for one rounding, whatever the order; infinite or no number where a part is."""
    parts = list(values)
    return math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts)


@dataclass(frozen=True)
class Estimate:
    """A mean, and how sure it is.

    Attributes:
        mean: Sum over weight.
        se: Standard error, clusters being independent; None from one cluster.
        clusters: How many there are.
        weight: Number of things averaged.
    """

    mean: float
    se: float | None
    clusters: int
    weight: float

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Ends of the 95 % interval (Student's t); None from one cluster."""
        if self.se is None:
            return None, None
        half = student(self.clusters - 1) * self.se
        return self.mean - half, self.mean + half


def estimate(totals: Totals) -> Estimate:
    """The mean over all clusters, a ratio of sums, and its standard error.

    The error is that of a ratio estimator: clusters deviate by their sum less what their weight
    would give at the common mean (Cochran, Sampling Techniques, section 6.3).
    """
    count, weight = len(totals.sums), _sum(totals.weights.values())
    if not weight:
        return Estimate(math.nan, None, count, weight)
    mean = _sum(totals.sums.values()) / weight
    if count < 2:
        return Estimate(mean, None, count, weight)
    residuals = (totals.sums[name] - mean * totals.weights[name] for name in totals.sums)
    variance = _sum(residual * residual for residual in residuals) * count / (count - 1)
    return Estimate(mean, math.sqrt(variance) / weight, count, weight)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t, by degrees of freedom, within 0.2 %.

    Exact for 1 and 2; else by the expansion in powers of 1 / freedom (Abramowitz and Stegun,
    26.7.5).
    """
    p = 0.975
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (n + 1) for n, term in enumerate(terms))
