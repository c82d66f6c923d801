"""The most popular items, the same list for everybody: what a retriever must at least beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.baselines.retriever import popularity, without_known
from trainer.data.ragged import Ragged
from trainer.retrieval_task import RetrievalTask


class Popularity:
    """Items by their positive training impressions; equal ones in the order of items.parquet.

    Args:
        title: of the row.
    """

    def __init__(self, title: str = "popularity") -> None:
        self.title = title

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
