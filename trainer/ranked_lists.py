"""How good ranked lists over the full catalogue are, in the mean and case by case.

Each case has one right answer, so HR@K and Recall@K are the same number.

Legend: C cases, M places of a list, K places that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.bootstrap import Resamples, interval, sum_samples
from trainer.metrics import Floats
from trainer.pair_gains import Gain

if TYPE_CHECKING:
    from trainer.retrieval_task import RetrievalCases


@dataclass(frozen=True, kw_only=True)
class ListScores:
    """Lists of one retriever, measured at one K.

    Attributes:
        at: K.
        user: int64 (C,) ids, the units of a bootstrap.
        place: int64 (C,), place of the right answer among the first K, from 0; -1 for none.
    """

    at: int
    user: NDArray[np.int64]
    place: NDArray[np.int64]

    @property
    def hit(self) -> Floats:
        """Recall@K (and HR@K) of each case, float64 (C,)."""
        return (self.place >= 0).astype(np.float64)

    @property
    def gain(self) -> Floats:
        """NDCG@K of each case, float64 (C,)."""
        return _gain(self.place)

    def mean(self) -> dict[str, float]:
        """Means over cases: `recall` and `ndcg`."""
        return recall_and_ndcg(self.place)


def score_lists(
    lists: NDArray[np.int64], cases: RetrievalCases, *, at: Sequence[int] = (5, 10, 20, 50)
) -> dict[int, ListScores]:
    """Measure lists at several K.

    Args:
        lists: int64 (C, M) item rows, best first, -1 where a list has fewer.
        cases: the C cases that the lists are for.
        at: each K, at most M.

    Returns:
        for each K, in the order of `at`.

    Raises:
        ValueError: when lists and cases don't fit, or lists are shorter than a K.
    """
    if len(lists) != len(cases):
        raise ValueError(f"lists: expected one for each of {len(cases)} cases, found {len(lists)}")
    if not at or not 1 <= min(at) <= max(at) <= lists.shape[1]:
        raise ValueError(
            f"lists: at is {tuple(at)}, expected numbers from 1 to the {lists.shape[1]} items of a "
            "list; ask the retriever for longer lists"
        )
    is_target = lists == cases.target[:, None]
    place = np.where(is_target.any(axis=1), is_target.argmax(axis=1), -1)
    return {k: ListScores(at=k, user=cases.user, place=np.where(place < k, place, -1)) for k in at}


def recall_and_ndcg(place: NDArray[np.integer]) -> dict[str, float]:
    """Recall and NDCG of lists with one right answer each, from its place (-1 for none)."""
    return {"recall": float((place >= 0).mean()), "ndcg": float(_gain(place).mean())}


def _gain(place: NDArray[np.integer]) -> Floats:
    gain: Floats = np.where(place >= 0, 1 / np.log2(np.maximum(place, 0) + 2.0), 0.0)
    return gain


def mean_interval(
    values: Floats, user: NDArray[np.int64], *, num_resamples: int = 1000, seed: int = 0
) -> Gain:
    """Mean over cases and its 95 % interval, by a bootstrap over users.

    Two retrievers are compared pair by pair when `values` are their differences.

    Args:
        values: float64 (C,), for instance `a.gain - b.gain`.
        user: int64 (C,) ids.
        num_resamples: draws of users.
        seed: of the draws.

    Example::

        ours, theirs = scores["dig"][10], scores["popularity"][10]
        mean_interval(ours.hit - theirs.hit, ours.user).low  # above 0: more hits
    """
    users, unit = np.unique(user, return_inverse=True)
    number = np.bincount(unit).astype(np.float64)
    sums = np.stack([np.bincount(unit, weights=values), number])
    drawn = sum_samples(
        sums, Resamples(num_units=len(users), num_resamples=num_resamples, seed=seed)
    )
    return Gain(float(values.mean()), *interval(drawn[0] / drawn[1]))
