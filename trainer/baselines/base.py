"""What a row that trains no network must offer to stand in the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trainer.data.schema import Splits
from trainer.metrics import Floats

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset


class Baseline(Protocol):
    """A model that fits in memory and in a minute."""

    @property
    def name(self) -> str:
        """Name of the row."""
        ...

    def fit_predict(self, dataset: Dataset, splits: Splits, task: str) -> Floats:
        """Fit on train, choose settings on valid, return probabilities float64 of test rows."""
        ...
