"""Estimates with their bootstrap samples, so that two models can be subtracted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.bootstrap import interval
from trainer.metrics import Floats


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its bootstrap samples float64 (R,)."""

    value: float
    samples: Floats

    def __sub__(self, other: Estimate) -> Estimate:
        """Paired difference."""
        return Estimate(self.value - other.value, self.samples - other.samples)

    @property
    def ci(self) -> tuple[float, float]:
        """95 % percentile interval."""
        return interval(self.samples)

    @classmethod
    def median(cls, estimates: Sequence[Estimate]) -> Estimate:
        """Median over seeds, on the rows themselves and on each draw."""
        return cls(
            float(np.median([one.value for one in estimates])),
            np.median([one.samples for one in estimates], axis=0),
        )


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model on one split.

    Attributes:
        metrics: task -> metric -> estimate.
        buckets: task -> bucketing -> bucket -> AUC; only buckets that hold rows.
    """

    metrics: Mapping[str, Mapping[str, Estimate]]
    buckets: Mapping[str, Mapping[str, Mapping[str, Estimate]]]

    @classmethod
    def median(cls, seeds: Sequence[Measurement]) -> Measurement:
        """Median over seeds of every estimate.

        Raises:
            ValueError: when there is no seed.
        """
        if not seeds:
            raise ValueError("median of measurements: expected at least one seed, found none")
        first = seeds[0]
        return cls(
            metrics={
                task: {
                    name: Estimate.median([seed.metrics[task][name] for seed in seeds])
                    for name in values
                }
                for task, values in first.metrics.items()
            },
            buckets={
                task: {
                    cut: {
                        name: Estimate.median([seed.buckets[task][cut][name] for seed in seeds])
                        for name in values
                    }
                    for cut, values in cuts.items()
                }
                for task, cuts in first.buckets.items()
            },
        )
