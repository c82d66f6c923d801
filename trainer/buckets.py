"""Where a model gains: rows by item exposure, item age and user activity.

Exposure and activity are counted in the training part alone, so a bucket says what a model had
the chance to learn about the item or the user before it was asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data.schema import RowRange, Splits
from trainer.metrics import Ints

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

DAY_SECONDS = 86_400
EXPOSURE_EDGES = (1, 11, 101, 1001)
ACTIVITY_EDGES = (1, 21, 101)
AGE_EDGES = (1, 3, 7, 30, 365)
AGE_NAMES = ("<1 day", "1-3 days", "3-7 days", "7-30 days", "30-365 days", ">1 year")
COUNTED_ROWS = 1 << 20
"""Rows read at once while training impressions are counted."""


@dataclass(frozen=True, kw_only=True)
class Bucketing:
    """One way of cutting the rows of a split.

    Args:
        title: of the cut, for figures.
        names: of the buckets, ascending.
        code: (N,) position in `names` of each row.
    """

    title: str
    names: tuple[str, ...]
    code: NDArray[np.int8]

    def __post_init__(self) -> None:
        """Check the codes.

        Raises:
            ValueError: when a code names no bucket.
        """
        if len(self.code) and (self.code.min() < 0 or self.code.max() >= len(self.names)):
            raise ValueError(
                f"bucketing {self.title!r}: codes run from {self.code.min()} to "
                f"{self.code.max()}, expected 0 to {len(self.names) - 1}"
            )

    @property
    def present(self) -> tuple[int, ...]:
        """Codes of the buckets that hold rows."""
        return tuple(np.flatnonzero(np.bincount(self.code, minlength=len(self.names))).tolist())


def by_count(title: str, counts: Ints, edges: tuple[int, ...]) -> Bucketing:
    """Cut rows by a count, 0 apart: edges (1, 11, 101) give 0, 1-10, 11-100 and >100."""
    inner = [f"{low}-{high - 1:,}" for low, high in pairwise(edges)]
    code = np.digitize(counts, edges).astype(np.int8)
    return Bucketing(title=title, names=("0", *inner, f">{edges[-1] - 1:,}"), code=code)


def by_age(seconds: Ints) -> Bucketing:
    """Cut rows by the item's age at the request, in seconds (TRM's life time, Figures 3 and 5)."""
    code = np.digitize(seconds, [days * DAY_SECONDS for days in AGE_EDGES]).astype(np.int8)
    return Bucketing(title="item age at the request", names=AGE_NAMES, code=code)


def count_impressions(dataset: Dataset, column: str, train: RowRange, ids: Ints) -> Ints:
    """Rows of `train` that hold each of `ids` in `column`; memory is bounded by `ids`.

    Args:
        dataset: the log.
        column: integer column of interactions.
        train: rows that are counted.
        ids: (N,) ids that are asked about, repeats allowed.

    Returns:
        int64 (N,) counts.
    """
    wanted, inverse = np.unique(ids, return_inverse=True)
    counts = np.zeros(len(wanted), dtype=np.int64)
    for start in range(train.start, train.stop, COUNTED_ROWS):
        rows = RowRange(start, min(start + COUNTED_ROWS, train.stop))
        seen = dataset.read(rows, [column])[column]
        position = np.minimum(np.searchsorted(wanted, seen), len(wanted) - 1)
        counts += np.bincount(position[wanted[position] == seen], minlength=len(wanted))
    return counts[inverse]


def default_bucketings(dataset: Dataset, splits: Splits, rows: RowRange) -> dict[str, Bucketing]:
    """Exposure and activity; item age too where the schema names `created_at`."""
    schema = dataset.schema
    columns = [schema.item, schema.user, schema.time]
    columns += [schema.created_at] if schema.created_at is not None else []
    read = dataset.read(rows, columns)
    exposure = count_impressions(dataset, schema.item, splits.train, read[schema.item])
    activity = count_impressions(dataset, schema.user, splits.train, read[schema.user])
    bucketings = {
        "item_exposure": by_count("training impressions of the item", exposure, EXPOSURE_EDGES)
    }
    if schema.created_at is not None:
        bucketings["item_age"] = by_age(read[schema.time] - read[schema.created_at])
    bucketings["user_activity"] = by_count(
        "training impressions of the user", activity, ACTIVITY_EDGES
    )
    return bucketings
