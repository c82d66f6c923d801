"""AUC of a stream of probabilities, in bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AUC_BINS = 100_000


class StreamingAUC:
    """AUC of probabilities from two histograms, exact to the width of a bin (1e-5)."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, AUC_BINS), np.int64)

    def update(self, probabilities: NDArray[np.float64], labels: NDArray[np.int8]) -> None:
        """Add rows."""
        bins = np.minimum((probabilities * AUC_BINS).astype(np.int64), AUC_BINS - 1)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[labels == label], minlength=AUC_BINS)

    def compute(self) -> float:
        """Share of pairs in the right order, ties counted half; NaN with one class alone."""
        negatives, positives = self._counts.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        below = np.cumsum(negatives) - negatives / 2
        return float((positives * below).sum() / pairs) if pairs else float("nan")
