"""LightGBM on the schema's dense features: what a user would try first."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightgbm
import numpy as np
from numpy.typing import NDArray

from trainer.data.schema import RowRange, Splits
from trainer.metrics import Floats

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BoostedTreesBaseline:
    """Row of the report: gradient-boosted trees on the same causal numbers that models see.

    Args:
        name: of the row.
        num_trees: at most; fewer when LogLoss on valid stops falling.
        patience: trees without progress on valid after which training stops.
        learning_rate: of each tree.
        num_leaves: of each tree.
        num_threads: of LightGBM.
        seed: of LightGBM.
    """

    name: str = "LightGBM"
    num_trees: int = 200
    patience: int = 20
    learning_rate: float = 0.1
    num_leaves: int = 31
    num_threads: int = 2
    seed: int = 0

    def fit_predict(self, dataset: Dataset, splits: Splits, task: str) -> Floats:
        """Fit on train, stop on valid, predict test.

        Raises:
            ValueError: when `task` is no label or the schema has no dense feature.
        """
        schema = dataset.schema
        if task not in schema.labels:
            raise ValueError(f"task {task!r}: expected one of {', '.join(schema.labels)}")
        names = [feature.name for feature in schema.dense_features]
        if not names:
            raise ValueError(
                f"{self.name}: schema {schema.name!r} has no dense feature to split on; "
                "leave this row out"
            )

        def numbers(rows: RowRange) -> NDArray[np.float32]:
            columns = dataset.read(rows, names)
            return np.stack([columns[name].astype(np.float32) for name in names], axis=1)

        def labels(rows: RowRange) -> NDArray[np.float32]:
            return dataset.read(rows, [task])[task].astype(np.float32)

        train = lightgbm.Dataset(numbers(splits.train), labels(splits.train), feature_name=names)
        valid = train.create_valid(numbers(splits.valid), labels(splits.valid))
        booster = lightgbm.train(
            {
                "objective": "binary",
                "metric": "binary_logloss",
                "learning_rate": self.learning_rate,
                "num_leaves": self.num_leaves,
                "num_threads": self.num_threads,
                "seed": self.seed,
                "deterministic": True,
                "force_row_wise": True,
                "verbosity": -1,
            },
            train,
            num_boost_round=self.num_trees,
            valid_sets=[valid],
            callbacks=[lightgbm.early_stopping(self.patience, verbose=False)],
        )
        logger.info("%s, %s: %d trees", self.name, task, booster.best_iteration)
        scores = booster.predict(numbers(splits.test), num_iteration=booster.best_iteration)
        return np.asarray(scores, dtype=np.float64)
