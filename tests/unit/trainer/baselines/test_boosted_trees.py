import numpy as np
import pytest

from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.data.schema import Categorical, DatasetSchema, Dense, RowRange, Splits
from trainer.metrics import auc

SPLITS = Splits(RowRange(0, 3000), RowRange(3000, 4000), RowRange(4000, 5000))
SMALL = BoostedTreesBaseline(num_trees=30, num_leaves=7, num_threads=1)


class MemoryDataset:
    def __init__(self, schema, columns):
        self.schema = schema
        self.columns = columns

    def read(self, rows, columns):
        return {name: self.columns[name][rows.start : rows.stop] for name in columns}


def make_dataset():
    rng = np.random.default_rng(0)
    a, b, user = rng.random(5000), rng.random(5000), rng.integers(0, 50, 5000)
    schema = DatasetSchema(
        name="toy",
        features=(
            Dense(name="a", entity="user"),
            Categorical(name="user_id", entity="user", cardinality=50),
            Dense(name="b", entity="item"),
        ),
        labels=("like",),
    )
    label = (rng.random(5000) < 0.1 + 0.8 * ((a > 0.5) != (b > 0.5))).astype(np.int8)
    return MemoryDataset(schema, {"a": a, "b": b, "user_id": user, "like": label})


def test_learns_an_interaction_of_dense_features():
    dataset = make_dataset()
    scores = SMALL.fit_predict(dataset, SPLITS, "like")
    assert scores.shape == (1000,)
    assert scores.dtype == np.float64
    assert 0 <= scores.min() <= scores.max() <= 1
    assert auc(dataset.columns["like"][4000:], scores) > 0.85


def test_is_repeatable_and_blind_to_test_labels():
    dataset = make_dataset()
    first = SMALL.fit_predict(dataset, SPLITS, "like")
    dataset.columns["like"][4000:] = 1 - dataset.columns["like"][4000:]
    np.testing.assert_array_equal(first, SMALL.fit_predict(dataset, SPLITS, "like"))


def test_wrong_tasks_and_schemas_are_refused():
    dataset = make_dataset()
    with pytest.raises(ValueError, match="task 'click': expected one of like"):
        SMALL.fit_predict(dataset, SPLITS, "click")
    bare = DatasetSchema(name="bare", features=(), labels=("like",))
    with pytest.raises(ValueError, match="schema 'bare' has no dense feature"):
        SMALL.fit_predict(MemoryDataset(bare, {}), SPLITS, "like")
