import numpy as np
import pytest

from trainer.baselines.bias import NUM_SWEEPS, BiasBaseline, BiasModel
from trainer.data.schema import DatasetSchema, Dense, RowRange, Splits
from trainer.metrics import auc, log_loss

SCHEMA = DatasetSchema(name="toy", features=(Dense(name="x", entity="user"),), labels=("like",))


class MemoryDataset:
    def __init__(self, columns):
        self.schema = SCHEMA
        self.columns = columns

    def read(self, rows, columns):
        return {name: self.columns[name][rows.start : rows.stop] for name in columns}


def logs(rows=6000, seed=0):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, rows), rng.integers(0, 40, rows)
    rate = 0.5 + 0.25 * np.sin(user) + 0.2 * np.cos(3 * item)
    return user * 7, item * 1000, (rng.random(rows) < rate).astype(np.int8)


def test_biases_equal_a_loop_over_ids():
    user, item, label = logs(rows=300)
    model = BiasModel.fit(users=user, items=item, labels=label, item_strength=4, user_strength=9)
    mean = label.mean()
    item_bias = dict.fromkeys(item.tolist(), 0.0)
    user_bias = dict.fromkeys(user.tolist(), 0.0)
    for _ in range(NUM_SWEEPS):
        for one in item_bias:
            rest = [label[r] - mean - user_bias[user[r]] for r in np.flatnonzero(item == one)]
            item_bias[one] = sum(rest) / (len(rest) + 4)
        for one in user_bias:
            rest = [label[r] - mean - item_bias[item[r]] for r in np.flatnonzero(user == one)]
            user_bias[one] = sum(rest) / (len(rest) + 9)
    expected = [mean + item_bias[i] + user_bias[u] for u, i in zip(user, item, strict=True)]
    np.testing.assert_allclose(model.predict(user, item), np.clip(expected, 1e-4, 1 - 1e-4))


def test_unseen_ids_have_no_bias():
    model = BiasModel.fit(
        users=np.array([1, 2]),
        items=np.array([5, 6]),
        labels=np.array([1, 0]),
        item_strength=1,
        user_strength=1,
    )
    assert model.predict(np.array([3, 0, 9]), np.array([7, 0, 99])).tolist() == [0.5] * 3
    assert model.predict(np.array([1]), np.array([99]))[0] > 0.5


def test_baseline_ranks_the_test_rows_and_chooses_on_valid():
    user, item, label = logs()
    dataset = MemoryDataset({"user_id": user, "item_id": item, "like": label})
    splits = Splits(RowRange(0, 4000), RowRange(4000, 5000), RowRange(5000, 6000))
    scores = BiasBaseline().fit_predict(dataset, splits, "like")
    assert scores.shape == (1000,)
    assert auc(label[5000:], scores) > 0.65

    def valid_loss(item_strength, user_strength):
        model = BiasModel.fit(
            users=user[:4000],
            items=item[:4000],
            labels=label[:4000],
            item_strength=item_strength,
            user_strength=user_strength,
        )
        loss = log_loss(label[4000:5000], model.predict(user[4000:5000], item[4000:5000]))
        return loss, model

    _, best = min(
        (valid_loss(i, u) for i in (3.0, 10.0, 30.0, 100.0) for u in (3.0, 10.0, 30.0, 100.0)),
        key=lambda pair: pair[0],
    )
    np.testing.assert_array_equal(scores, best.predict(user[5000:], item[5000:]))


def test_labels_of_the_test_part_are_never_read():
    user, item, label = logs()
    splits = Splits(RowRange(0, 4000), RowRange(4000, 5000), RowRange(5000, 6000))
    hidden = label.copy()
    hidden[5000:] = 1 - hidden[5000:]
    found = [
        BiasBaseline().fit_predict(
            MemoryDataset({"user_id": user, "item_id": item, "like": y}), splits, "like"
        )
        for y in (label, hidden)
    ]
    np.testing.assert_array_equal(*found)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task 'click': expected one of like"):
        BiasBaseline().fit_predict(MemoryDataset({}), None, "click")
