"""What a model must offer to stand in a comparison of retrieval, and lists without known items.

Legend: C cases, M places of a list, N items.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.ragged import Ragged
from trainer.metrics import Floats
from trainer.retrieval_task import RetrievalTask


class Retriever(Protocol):
    """Retrieves items for histories, once it is fitted.

    Example::

        task = RetrievalTask.of_log(dataset, dataset.split(config.split))
        retriever.fit(task, seed=0)
        lists = retriever.top(task.test.history, 50)
        score_lists(lists, task.test)[10].mean()  # {"recall": ..., "ndcg": ...}
    """

    @property
    def title(self) -> str:
        """Name of the row in reports."""
        ...

    def fit(self, task: RetrievalTask, *, seed: int) -> None:
        """Fit on `task.train`; settings may be chosen by `task.valid`, never by `task.test`.

        Args:
            task: what is to be retrieved. `task.leave_out_history` holds for `top`.
            seed: of everything that is random.
        """
        ...

    def top(self, histories: Ragged, k: int) -> NDArray[np.int64]:
        """The best items for each history.

        Args:
            histories: C lists of item rows, oldest first; a list may be empty.
            k: items wanted.

        Returns:
            item rows int64 (C, k), best first, none twice, -1 behind the last where there are
            fewer than `k`.
        """
        ...


def best_items(
    scores: NDArray[np.floating], k: int, *, left_out: Ragged | None = None
) -> NDArray[np.int64]:
    """The items with the highest scores of each case.

    Args:
        scores: float (C, N); -inf for items that must not be retrieved.
        k: items wanted.
        left_out: C lists of item rows that must not be retrieved either.

    Returns:
        int64 (C, k), best first, -1 behind the last.
    """
    values = torch.from_numpy(np.asarray(scores))
    if left_out is not None:
        values = values.clone()
        values[_case_of(left_out), torch.from_numpy(left_out.values)] = float("-inf")
    best = values.topk(min(k, values.shape[1]), dim=1)
    found = torch.where(best.values > float("-inf"), best.indices, -1).numpy()
    return _padded(found, k)


def without_known(
    lists: NDArray[np.int64], histories: Ragged, k: int, *, num_items: int
) -> NDArray[np.int64]:
    """Take the items of histories out of lists that are already ranked.

    Args:
        lists: int64 (C, M) item rows, best first, -1 where there is none.
        histories: C lists of item rows.
        k: items wanted; lists of k and the longest history give them all.
        num_items: N.

    Returns:
        int64 (C, k), in the same order, -1 behind the last.
    """
    case = np.arange(len(lists))[:, None] * num_items
    known = histories.values + _case_of(histories).numpy() * num_items
    gone = np.isin(lists + case, known) | (lists < 0)
    order = np.argsort(gone, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(np.where(gone, -1, lists), order, axis=1)
    return _padded(kept, k)


def popularity(task: RetrievalTask) -> Floats:
    """Positive training impressions of each item, float64 (N,): what to fall back to."""
    return np.bincount(task.train.values, minlength=task.num_items).astype(np.float64)


def _case_of(lists: Ragged) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(lists)), lists.lengths))


def _padded(found: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    return np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=-1)
