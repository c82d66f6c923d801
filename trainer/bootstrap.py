"""Paired bootstrap over groups (users): intervals of metrics and of differences of models.

Impressions of one user depend on each other, so users are what is drawn with replacement. Draw
number r depends on the seed and r alone: models that are measured one after another, or in other
processes, see the same resamples, and the difference of their samples is paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Resamples:
    """Draws of `num_units` units with replacement.

    Args:
        num_units: number of units (users) U.
        num_resamples: number of draws R.
        seed: of the draws.
    """

    num_units: int
    num_resamples: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: when a size is below 1.
        """
        if self.num_units < 1 or self.num_resamples < 1:
            raise ValueError(
                "bootstrap: expected at least one unit and one resample, found "
                f"num_units={self.num_units}, num_resamples={self.num_resamples}"
            )

    def __iter__(self) -> Iterator[Floats]:
        """Yield for each draw float64 (U,): how often each unit was drawn."""
        for resample in range(self.num_resamples):
            rng = np.random.default_rng((self.seed, resample))
            drawn = rng.integers(self.num_units, size=self.num_units)
            yield np.bincount(drawn, minlength=self.num_units).astype(np.float64)


@dataclass(frozen=True)
class RankedScores:
    """Scores sorted once, from which the exact AUC under any weights of units follows.

    Attributes:
        negative_unit: int64 (N-,) unit of each negative, by ascending score.
        positive_unit: int64 (N+,) unit of each positive, by ascending score.
        below: int64 (N+,) negatives that score lower than the positive.
        not_above: int64 (N+,) negatives that score lower or equal; None when nothing ties.
    """

    negative_unit: Ints
    positive_unit: Ints
    below: Ints
    not_above: Ints | None

    @classmethod
    def sort(cls, labels: Floats, scores: Floats, unit: Ints) -> RankedScores:
        """Sort checked labels (N,) and scores (N,); `unit` (N,) is in [0, U)."""
        negative = np.flatnonzero(labels == 0)
        positive = np.flatnonzero(labels == 1)
        negative = negative[np.argsort(scores[negative])]
        positive = positive[np.argsort(scores[positive])]
        below = np.searchsorted(scores[negative], scores[positive], side="left")
        not_above = np.searchsorted(scores[negative], scores[positive], side="right")
        return cls(
            unit[negative],
            unit[positive],
            below,
            None if np.array_equal(below, not_above) else not_above,
        )

    def auc(self, weights: Floats) -> float:
        """AUC when the rows of unit u count `weights[u]` times; nan without both classes."""
        won = np.zeros(len(self.negative_unit) + 1)
        np.cumsum(weights[self.negative_unit], out=won[1:])
        positive = weights[self.positive_unit]
        total = won[-1] * positive.sum()
        if total == 0:
            return float("nan")
        area = positive @ won[self.below]
        if self.not_above is not None:
            area = 0.5 * (area + positive @ won[self.not_above])
        return float(area / total)


def auc_samples(ranked: Sequence[RankedScores], resamples: Resamples) -> Floats:
    """AUC of each of M sorted score vectors on each of R draws: float64 (M, R)."""
    samples = np.empty((len(ranked), resamples.num_resamples))
    for index, weights in enumerate(resamples):
        samples[:, index] = [scores.auc(weights) for scores in ranked]
    return samples


def sum_samples(unit_sums: Floats, resamples: Resamples) -> Floats:
    """Totals of per-unit sums (K, U) on each draw: float64 (K, R).

    Every metric that is a function of sums over rows (LogLoss, NE, calibration, GAUC) follows.
    """
    return np.stack([unit_sums @ weights for weights in resamples], axis=1)


def interval(samples: NDArray[np.float64], *, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap samples, draws without the metric (nan) left out.

    Args:
        samples: (R,) values of a metric, or differences of two models' paired values.
        level: coverage in (0, 1).

    Returns:
        Lower and upper end; (nan, nan) when no draw has the metric.

    Raises:
        ValueError: when `level` is not inside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level of an interval must lie inside (0, 1), found {level}")
    held = samples[np.isfinite(samples)]
    if len(held) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(held, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
