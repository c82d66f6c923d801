"""Smoothed user and item bias: what is known without any feature.

p(user, item) = mean + item bias + user bias. A bias is a mean residual shrunk towards 0 as if
`strength` rows of residual 0 had been seen; users or items absent from train have bias 0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.data.schema import RowRange, Splits
from trainer.metrics import Floats, Ints, check_scores, log_loss

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

logger = logging.getLogger(__name__)

LOWEST = 1e-4
"""Probabilities stay this far from 0 and 1."""
NUM_SWEEPS = 3
"""Times that item and user biases are refitted, each given the other."""


@dataclass(frozen=True)
class Biases:
    """Biases of the ids seen in train: `ids` int64 (K,) ascending, `values` float64 (K,)."""

    ids: Ints
    values: Floats

    def of(self, ids: NDArray[np.integer]) -> Floats:
        """Bias of each id, float64 (N,); 0 for an id that train did not hold."""
        position = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[position] == ids, self.values[position], 0.0)


@dataclass(frozen=True)
class BiasModel:
    """A fitted model: base rate, item biases and user biases, on the scale of probabilities."""

    mean: float
    item: Biases
    user: Biases

    @classmethod
    def fit(
        cls,
        *,
        users: NDArray[np.integer],
        items: NDArray[np.integer],
        labels: NDArray[np.number],
        item_strength: float,
        user_strength: float,
    ) -> BiasModel:
        """Fit by alternating shrunk means of residuals.

        Args:
            users: (N,) ids.
            items: (N,) ids.
            labels: (N,) 0 or 1.
            item_strength: rows that pull an item's bias to 0.
            user_strength: rows that pull a user's bias to 0.
        """
        return next(_fits(users, items, labels, [(item_strength, user_strength)]))

    def predict(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> Floats:
        """Probabilities float64 (N,)."""
        raw = self.mean + self.item.of(items) + self.user.of(users)
        return np.clip(raw, LOWEST, 1 - LOWEST)


def _fits(
    users: NDArray[np.integer],
    items: NDArray[np.integer],
    labels: NDArray[np.number],
    strengths: Iterable[tuple[float, float]],
) -> Iterator[BiasModel]:
    y, _ = check_scores(labels, labels)
    mean = float(y.mean())
    item_ids, item = np.unique(items, return_inverse=True)
    user_ids, user = np.unique(users, return_inverse=True)
    for item_strength, user_strength in strengths:
        item_bias, user_bias = np.zeros(len(item_ids)), np.zeros(len(user_ids))
        for _ in range(NUM_SWEEPS):
            item_bias = _shrunk_means(y - mean - user_bias[user], item, item_strength)
            user_bias = _shrunk_means(y - mean - item_bias[item], user, user_strength)
        yield BiasModel(
            mean,
            Biases(item_ids.astype(np.int64), item_bias),
            Biases(user_ids.astype(np.int64), user_bias),
        )


def _shrunk_means(residuals: Floats, group: Ints, strength: float) -> Floats:
    return np.bincount(group, weights=residuals) / (np.bincount(group) + strength)


@dataclass(frozen=True, kw_only=True)
class BiasBaseline:
    """Row of the report: strengths of shrinking are those with the best LogLoss on valid.

    Args:
        name: of the row.
        strengths: tried for items and for users, all combinations.
    """

    name: str = "user + item bias"
    strengths: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0)

    def fit_predict(self, dataset: Dataset, splits: Splits, task: str) -> Floats:
        """Fit on train, choose on valid, predict test.

        Raises:
            ValueError: when `task` is no label of the schema.
        """
        schema = dataset.schema
        if task not in schema.labels:
            raise ValueError(f"task {task!r}: expected one of {', '.join(schema.labels)}")

        def ids(rows: RowRange) -> tuple[Ints, Ints]:
            columns = dataset.read(rows, [schema.user, schema.item])
            return columns[schema.user], columns[schema.item]

        users, items = ids(splits.train)
        labels = dataset.read(splits.train, [task])[task]
        valid_users, valid_items = ids(splits.valid)
        valid_labels = dataset.read(splits.valid, [task])[task]
        candidates = list(product(self.strengths, self.strengths))
        best: tuple[float, BiasModel] | None = None
        for strengths, model in zip(
            candidates, _fits(users, items, labels, candidates), strict=True
        ):
            loss = log_loss(valid_labels, model.predict(valid_users, valid_items))
            if best is None or loss < best[0]:
                best = loss, model
                chosen = strengths
        assert best is not None
        logger.info(
            "%s, %s: item strength %g, user strength %g, valid LogLoss %.4f",
            self.name,
            task,
            *chosen,
            best[0],
        )
        return best[1].predict(*ids(splits.test))
