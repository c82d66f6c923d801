"""The features and rows that every side of the throughput comparison trains on.

Needs numpy alone, so that the peers' virtual environment can import it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 4096
DIM = 16
HIDDEN_DIMS = (256, 128, 64)
CROSS_LAYERS = 3
HISTORY_LENGTH = 50
ITEM = "item_id"
HISTORY = "history"
SIDE_ROWS = {
    "user_id": 6040,
    "zip": 3439,
    "query": 1000,
    "director": 500,
    "genre_set": 301,
    "year": 81,
    "region": 50,
    "hour": 24,
    "occupation": 21,
    "genre": 18,
    "gap": 16,
    "position": 10,
    "weekday": 7,
    "gender": 2,
}
"""Rows of the fourteen categorical features beside the item; sizes as in MovieLens-1M."""

ZIPF_EXPONENT = 0.8
SEED = 7


@dataclass(frozen=True)
class Rows:
    """Rows of a log.

    Attributes:
        ids: int64 (N,) of each categorical feature.
        history: int64 (N, 50) item ids.
        label: float32 (N,) of 0 and 1.
    """

    ids: dict[str, NDArray[np.int64]]
    history: NDArray[np.int64]
    label: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.label)

    def take(self, start: int, stop: int) -> Rows:
        """Rows from `start` up to `stop`."""
        return Rows(
            {name: values[start:stop] for name, values in self.ids.items()},
            self.history[start:stop],
            self.label[start:stop],
        )

    def batches(self, count: int) -> list[Rows]:
        """The first `count` batches."""
        return [self.take(at * BATCH_SIZE, (at + 1) * BATCH_SIZE) for at in range(count)]

    def save(self, path: Path) -> None:
        """Write an npz file."""
        np.savez(path, history=self.history, label=self.label, **self.ids)

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read what `save` wrote."""
        with np.load(path) as found:
            arrays = dict(found)
        return cls(history=arrays.pop("history"), label=arrays.pop("label"), ids=arrays)


def make_rows(num_rows: int, num_items: int) -> Rows:
    """Draw rows: items by a Zipf law over shuffled ids, the other features evenly."""
    rng = np.random.default_rng(SEED)
    weights = np.arange(1, num_items + 1) ** -ZIPF_EXPONENT
    cumulated = np.cumsum(weights) / weights.sum()
    rank = np.searchsorted(cumulated, rng.random(num_rows * (HISTORY_LENGTH + 1)))
    items = rng.permutation(num_items)[np.minimum(rank, num_items - 1)]
    ids = {ITEM: items[:num_rows]}
    for name, rows in SIDE_ROWS.items():
        ids[name] = rng.integers(0, rows, num_rows)
    return Rows(
        ids=ids,
        history=items[num_rows:].reshape(num_rows, HISTORY_LENGTH),
        label=(rng.random(num_rows) < 0.3).astype(np.float32),
    )


def table_rows(num_items: int) -> dict[str, int]:
    """Rows of each table, by feature; the history shares the item's."""
    return {ITEM: num_items, **SIDE_ROWS}
