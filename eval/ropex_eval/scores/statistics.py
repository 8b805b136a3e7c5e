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

    def counted_above(self, limit: float) -> int:
        """Clusters whose own mean is above a limit, or no number."""
        return sum(
            not self.sums[name] <= limit * weight for name, weight in self.weights.items() if weight
        )

    def share_above(self, limit: float) -> float | None:
        """The same as a share of all clusters; None if there are none."""
        known = sum(bool(weight) for weight in self.weights.values())
        return self.counted_above(limit) / known if known else None

    @property
    def finite(self) -> bool:
        """Whether every sum is a number."""
        return all(map(math.isfinite, self.sums.values()))


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
        skewness: Of the clusters: the mean cube over the cube of their standard deviation; 0 of
            fewer than three.
    """

    mean: float
    se: float | None
    clusters: int
    weight: float
    skewness: float = 0.0

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Ends of the 95 % interval; None from one cluster."""
        return self.bounds(0.975)

    def bounds(self, sure: float) -> tuple[float | None, float | None]:
        """What the truth is above, and below, each with this probability; None from one cluster.

        Student's t, widened on the side of the long tail by Hall's transformation (1992, Journal
        of the Royal Statistical Society B 54, 221), which undoes the skewness of the mean.
        """
        if self.se is None:
            return None, None
        t = student(self.clusters - 1, sure)
        above, below = max(t, self._quantile(t)), max(t, -self._quantile(-t))
        return self.mean - above * self.se, self.mean + below * self.se

    def _quantile(self, t: float) -> float:
        """The point of the studentised mean that lies where `t` does without skewness."""
        if abs(self.skewness) < 1e-6 or not math.isfinite(self.skewness):
            return t
        bend, root = self.skewness, math.sqrt(self.clusters)
        straight = 1 + bend * (t / root - bend / (6 * self.clusters))
        cube_root = math.copysign(abs(straight) ** (1 / 3), straight)
        return 3 * root / bend * (cube_root - 1)


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
    residuals = [totals.sums[name] - mean * totals.weights[name] for name in totals.sums]
    variance = _sum(residual * residual for residual in residuals) * count / (count - 1)
    se = math.sqrt(variance) / weight
    return Estimate(mean, se, count, weight, _skewness(residuals))


def _skewness(residuals: Sequence[float]) -> float:
    count, size = len(residuals), max(map(abs, residuals))
    if count < 3 or not 0 < size < math.inf:
        return 0.0
    scaled = [residual / size for residual in residuals]  # so that no cube overflows
    variance = _sum(each * each for each in scaled) / (count - 1)
    return _sum(each**3 for each in scaled) / count / math.pow(variance, 1.5)


def student(freedom: int, sure: float = 0.975) -> float:
    """A point of Student's t, by degrees of freedom, within 0.2 %: by default the 97.5 % one.

    Exact for 1 and 2; else by the expansion in powers of 1 / freedom (Abramowitz and Stegun,
    26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi * (sure - 0.5))
    if freedom == 2:
        return (2 * sure - 1) / math.sqrt(2 * sure * (1 - sure))
    z = NormalDist().inv_cdf(sure)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom ** (n + 1) for n, term in enumerate(terms))


def binomial(most: int, trials: int, chance: float) -> float:
    """How probable it is that at most so many of all trials succeed."""
    return math.fsum(
        math.comb(trials, n) * chance**n * (1 - chance) ** (trials - n) for n in range(most + 1)
    )
