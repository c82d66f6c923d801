import json
from dataclasses import replace

import numpy as np
import pytest

from trainer import buckets
from trainer.bootstrap import Resamples
from trainer.data.schema import DatasetSchema, Dense, RowRange, Splits
from trainer.evaluation import (
    EvaluationSplit,
    bucket_differences,
    compare_pairs,
    evaluate,
    measure,
    metric_differences,
)
from trainer.measurement import Measurement
from trainer.metrics import auc, calibration, grouped_auc, log_loss, normalized_entropy

ROWS = 400


def make_split(nested=True, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 30, ROWS) * 17
    query = user * 10 + rng.integers(0, 3, ROWS) if nested else rng.integers(0, 50, ROWS)
    labels = {"like": rng.integers(0, 2, ROWS), "love": rng.random(ROWS) < 0.2}
    cut = buckets.by_count("exposure", rng.integers(0, 40, ROWS), (1, 11, 101))
    split = EvaluationSplit.from_ids(
        rows=RowRange(1000, 1000 + ROWS),
        labels=labels,
        user_ids=user,
        query_ids=query,
        bucketings={"item_exposure": cut},
    )
    scores = {task: np.clip(0.3 * y + 0.7 * rng.random(ROWS), 0, 1) for task, y in labels.items()}
    return split, scores, user, query


def on_rows(split, scores, user, query, rows):
    """Every metric of chosen rows, by the plain functions."""
    y, p = split.labels["like"][rows], scores["like"][rows]
    return {
        "auc": auc(y, p),
        "gauc": grouped_auc(y, p, user[rows]).value,
        "qauc": grouped_auc(y, p, query[rows]).value,
        "logloss": log_loss(y, p),
        "ne": normalized_entropy(y, p),
        "calibration": calibration(y, p),
    }


def test_values_and_samples_equal_the_plain_metrics_on_resampled_rows():
    split, scores, user, query = make_split()
    found = measure(scores, split, num_resamples=4, seed=9)
    expected = on_rows(split, scores, user, query, np.arange(ROWS))
    for name, value in expected.items():
        assert found.metrics["like"][name].value == pytest.approx(value, abs=1e-12), name
    for draw, weights in enumerate(Resamples(num_units=30, num_resamples=4, seed=9)):
        # A user that is drawn twice is two users with groups of their own.
        times = weights[split.user].astype(int)
        rows = np.repeat(np.arange(ROWS), times)
        copy = np.concatenate([np.arange(count) for count in times])
        plain = on_rows(split, scores, user, query, rows)
        y, p = split.labels["like"][rows], scores["like"][rows]
        plain["gauc"] = grouped_auc(y, p, split.user[rows] * 100 + copy).value
        plain["qauc"] = grouped_auc(y, p, split.query[rows] * 100 + copy).value
        for name, value in plain.items():
            assert found.metrics["like"][name].samples[draw] == pytest.approx(value, abs=1e-9), name


def test_queries_that_span_users_are_drawn_themselves():
    split, scores, _, _ = make_split(nested=False)
    assert split.query_user is None
    found = measure(scores, split, num_resamples=3, seed=2).metrics["like"]["qauc"]
    for draw, weights in enumerate(Resamples(num_units=split.num_queries, num_resamples=3, seed=2)):
        groups = grouped_auc(split.labels["like"], scores["like"], split.query)
        weight = weights[groups.group] * groups.impressions
        assert found.samples[draw] == pytest.approx(np.average(groups.auc, weights=weight))


def test_a_log_that_tells_no_users_apart_draws_rows():
    split, scores, user, _ = make_split()
    other = {task: np.random.default_rng(9).random(ROWS) for task in scores}
    one = EvaluationSplit.from_ids(
        rows=split.rows, labels=split.labels, user_ids=0 * user, query_ids=user
    )
    assert (one.unit, split.unit) == ("row", "user")
    found = [measure(given, one, num_resamples=200) for given in (scores, other)]
    low, high = found[1].metrics["like"]["auc"].ci
    assert high - low > 0.05  # an AUC of noise over 400 rows
    assert low < 0.5 < high
    assert np.isnan(found[0].metrics["like"]["gauc"].ci).all()
    samples = found[0].metrics["like"]["auc"].samples
    rows = next(iter(Resamples(num_units=ROWS, num_resamples=1)))
    weights = np.repeat(np.arange(ROWS), rows.astype(int))
    expected = auc(split.labels["like"][weights], scores["like"][weights])
    assert samples[0] == pytest.approx(expected)


def test_few_users_are_drawn_as_users():
    """Rows of a user depend on each other: drawn alone, they would say too much."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(8), 50)
    labels = rng.random(ROWS) < np.repeat(rng.random(8), 50)
    split = EvaluationSplit.from_ids(
        rows=RowRange(0, ROWS), labels={"like": labels}, user_ids=user, query_ids=user
    )
    scores = {"like": np.clip(0.5 * np.repeat(rng.random(8), 50) + 0.4 * rng.random(ROWS), 0, 1)}
    by_rows = replace(split, user=np.arange(ROWS), query_user=None)
    widths = [
        np.ptp(measure(scores, one, num_resamples=200).metrics["like"]["auc"].ci)
        for one in (split, by_rows)
    ]
    assert split.unit == "user"
    assert widths[0] > 2 * widths[1]


def test_buckets_partition_the_rows_and_hold_their_own_auc():
    split, scores, _, _ = make_split()
    described = evaluate(scores, split, num_resamples=10)
    found = described["buckets"]["like"]["item_exposure"]
    assert sum(bucket["rows"] for bucket in found) == ROWS
    cut = split.bucketings["item_exposure"]
    for bucket in found:
        rows = cut.code == cut.names.index(bucket["bucket"])
        assert bucket["auc"] == pytest.approx(auc(split.labels["like"][rows], scores["like"][rows]))
    assert [bucket["bucket"] for bucket in found] == ["0", "1-10", "11-100"]


def test_description_is_strict_json_with_null_for_what_does_not_exist():
    split = EvaluationSplit.from_ids(
        rows=RowRange(0, 3), labels={"like": [0, 0, 0]}, user_ids=[1, 1, 2], query_ids=[1, 2, 3]
    )
    described = evaluate({"like": [0.1, 0.2, 0.3]}, split, num_resamples=5)
    text = json.dumps(described, allow_nan=False)
    assert json.loads(text)["metrics"]["like"]["auc"] is None
    assert json.loads(text)["metrics"]["like"]["auc_ci"] == [None, None]


def test_pairs_are_differences_with_paired_intervals():
    split, scores, _, _ = make_split()
    worse = {task: 0.5 * s + 0.25 for task, s in scores.items()}
    worse["like"] = np.random.default_rng(4).random(ROWS)
    pairs = compare_pairs(scores, worse, split, num_resamples=100)
    like = {p["metric"]: p for p in pairs["metrics"] if p["task"] == "like"}
    a = auc(split.labels["like"], scores["like"])
    b = auc(split.labels["like"], worse["like"])
    assert like["auc"]["difference"] == pytest.approx(a - b)
    assert 0 < like["auc"]["ci"][0] < a - b < like["auc"]["ci"][1]
    love = {p["metric"]: p for p in pairs["metrics"] if p["task"] == "love"}
    assert love["auc"]["difference"] == 0
    assert love["auc"]["ci"] == [0, 0]
    assert sum(p["rows"] for p in pairs["buckets"] if p["task"] == "love") == ROWS


def test_median_over_seeds_is_taken_per_draw():
    split, scores, _, _ = make_split()
    rng = np.random.default_rng(5)
    seeds = [
        measure({task: rng.random(ROWS) for task in scores}, split, num_resamples=20)
        for _ in range(3)
    ]
    middle = Measurement.median(seeds)
    values = sorted(seed.metrics["like"]["auc"].value for seed in seeds)
    assert middle.metrics["like"]["auc"].value == values[1]
    assert metric_differences(middle, middle)[0]["ci"] == [0, 0]
    assert bucket_differences(middle, middle, split)[0]["difference"] == 0
    with pytest.raises(ValueError, match="at least one seed"):
        Measurement.median([])


def test_wrong_splits_and_scores_are_refused():
    split, scores, _, _ = make_split()
    with pytest.raises(ValueError, match="no scores of task love; found like"):
        measure({"like": scores["like"]}, split)
    with pytest.raises(ValueError, match="differ in length"):
        measure({**scores, "love": scores["love"][:-1]}, split)
    with pytest.raises(ValueError, match="split of 2 rows: query group has 1 values"):
        EvaluationSplit.from_ids(
            rows=RowRange(0, 2), labels={"like": [0, 1]}, user_ids=[1, 2], query_ids=[1]
        )
    with pytest.raises(ValueError, match="has no rows"):
        EvaluationSplit.from_ids(rows=RowRange(5, 5), labels={}, user_ids=[], query_ids=[])


class MemoryDataset:
    """Columns in memory behind the reading interface of a data set."""

    def __init__(self, schema, columns):
        self.schema = schema
        self.columns = columns

    def read(self, rows, columns):
        return {name: self.columns[name][rows.start : rows.stop] for name in columns}


def test_split_from_a_dataset_counts_training_impressions_only(monkeypatch):
    monkeypatch.setattr(buckets, "COUNTED_ROWS", 7)
    rng = np.random.default_rng(6)
    day = buckets.DAY_SECONDS
    item, user = rng.integers(0, 4, 60) * 11, rng.integers(0, 30, 60) * 3
    created = np.zeros(60, dtype=np.int64)
    time = np.arange(60) * day // 2
    schema = DatasetSchema(name="toy", features=(Dense(name="d", entity="user"),), labels=("like",))
    columns = {
        "item_id": item,
        "user_id": user,
        "timestamp": time,
        "created_at": created,
        "session_id": np.arange(60),
        "like": rng.integers(0, 2, 60),
    }
    splits = Splits(RowRange(0, 30), RowRange(30, 40), RowRange(40, 60))
    dataset = MemoryDataset(schema, columns)
    split = EvaluationSplit.from_dataset(dataset, splits, splits.test)
    for name, values, edges in (
        ("item_exposure", item, buckets.EXPOSURE_EDGES),
        ("user_activity", user, buckets.ACTIVITY_EDGES),
    ):
        cut = split.bucketings[name]
        for row in range(20):
            count = int((values[:30] == values[40 + row]).sum())
            assert cut.code[row] == sum(count >= edge for edge in edges)
    age = split.bucketings["item_age"]
    assert [age.names[code] for code in age.code] == ["7-30 days"] * 20


def test_bucket_names_state_their_edges():
    cut = buckets.by_count("exposure", np.array([0, 1, 10, 11, 1000, 1001]), (1, 11, 101, 1001))
    assert cut.names == ("0", "1-10", "11-100", "101-1,000", ">1,000")
    assert cut.code.tolist() == [0, 1, 1, 2, 3, 4]
    assert cut.present == (0, 1, 2, 3, 4)
    ages = buckets.by_age(86_400 * np.array([0, 0.99, 1, 2.99, 3, 40, 400]))
    assert ages.code.tolist() == [0, 0, 1, 1, 2, 4, 5]
    with pytest.raises(ValueError, match="codes run from 0 to 9"):
        buckets.Bucketing(title="x", names=("a",), code=np.array([0, 9], dtype=np.int8))
