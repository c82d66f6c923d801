"""The most popular items, the same list for everybody: what a retriever must at least beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.baselines.retriever import popularity, without_known
from trainer.data.dataset import Dataset
from trainer.data.ragged import Ragged
from trainer.retrieval_task import RetrievalTask


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """The row, as a value.

    Args:
        title: of the row.
    """

    title: str = "popularity"

    def build(self, dataset: Dataset) -> Popularity:
        """The retriever, not yet fitted; it reads nothing of the log but its task."""
        return Popularity(self)


class Popularity:
    """Items by their positive training impressions; equal ones in the order of items.parquet.

    Args:
        config: None for the defaults.
    """

    def __init__(self, config: PopularityConfig | None = None) -> None:
        self.title = (config or PopularityConfig()).title

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        """Count; nothing is random."""
        self._best = np.argsort(-popularity(task), kind="stable")
        self._leaves_out = task.leave_out_history

    def top(self, histories: Ragged, k: int) -> NDArray[np.int64]:
        """See `Retriever.top`."""
        longest = int(histories.lengths.max(initial=0)) if self._leaves_out else 0
        lists = np.full((len(histories), k + longest), -1, dtype=np.int64)
        best = self._best[: k + longest]
        lists[:, : len(best)] = best
        if not self._leaves_out:
            return lists
        return without_known(lists, histories, k, num_items=len(self._best))
