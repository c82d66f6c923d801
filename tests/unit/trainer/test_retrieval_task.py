from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.ragged import Ragged
from trainer.data.schema import DatasetSchema, GlobalTimeSplit, ItemSequence
from trainer.ranked_lists import mean_interval, score_lists
from trainer.retrieval_task import RetrievalCases, RetrievalTask

SCHEMA = DatasetSchema(
    name="small",
    features=(),
    labels=("like", "never"),
    histories=(
        ItemSequence(name="seen", max_length=9),
        ItemSequence(name="liked", max_length=9),
    ),
    created_at=None,
)
NUM_ITEMS = 12


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> tuple[Path, list[dict]]:
    rng = np.random.default_rng(3)
    item_ids = 100 + rng.permutation(3 * NUM_ITEMS)[:NUM_ITEMS]
    rows = []
    past: dict[int, list[tuple[int, int]]] = {}
    for row in range(300):
        user, item = int(rng.integers(20)), int(rng.choice(item_ids))
        seen = past.setdefault(user, [])
        like = int(rng.random() < 0.4)
        rows.append(
            {
                "user_id": user,
                "item_id": item,
                "timestamp": row // 2,
                "session_id": 0,
                "like": like,
                "never": 0,
                "seen": [i for i, _ in seen[-9:]],
                "liked": [i for i, liked in seen if liked][-9:],
            }
        )
        seen.append((item, like))
    folder = tmp_path_factory.mktemp("log")
    (folder / "interactions").mkdir()
    table = pa.Table.from_pylist(rows)
    for part, (start, stop) in enumerate([(0, 190), (190, 300)]):
        pq.write_table(
            table.slice(start, stop - start),
            folder / "interactions" / f"part-{part}.parquet",
            row_group_size=32,
        )
    pq.write_table(pa.table({"item_id": item_ids}), folder / "items.parquet")
    return folder, rows


def open_log(folder: Path) -> tuple[Dataset, object]:
    dataset = Dataset.open(folder, SCHEMA)
    return dataset, dataset.split(GlobalTimeSplit(train=0.5, valid=0.2))


def naive_cases(rows, dataset, part, *, leave_out: bool) -> dict[int, tuple]:
    row_of = {item: row for row, item in enumerate(dataset.item_ids.tolist())}
    last = {}
    for row in range(part.start, part.stop):
        if rows[row]["like"]:
            history = [row_of[item] for item in rows[row]["liked"]]
            last[rows[row]["user_id"]] = (row, history, row_of[rows[row]["item_id"]])
    return {u: case for u, case in last.items() if not leave_out or case[2] not in case[1]}


@pytest.mark.parametrize("leave_out", [False, True])
def test_task_is_what_a_walk_over_the_log_finds(log, leave_out):
    folder, rows = log
    dataset, splits = open_log(folder)
    task = RetrievalTask.of_log(dataset, splits, history="liked", leave_out_history=leave_out)
    row_of = {item: row for row, item in enumerate(dataset.item_ids.tolist())}
    sequences: dict[int, list[int]] = {}
    for row in rows[: splits.train.stop]:
        if row["like"]:
            sequences.setdefault(row["user_id"], []).append(row_of[row["item_id"]])
    assert task.num_items == NUM_ITEMS
    assert task.users.tolist() == sorted(sequences)
    assert lists(task.train) == [sequences[user] for user in sorted(sequences)]
    for part, cases in ((splits.valid, task.valid), (splits.test, task.test)):
        naive = naive_cases(rows, dataset, part, leave_out=leave_out)
        assert cases.user.tolist() == sorted(naive)
        found = zip(cases.row.tolist(), lists(cases.history), cases.target.tolist(), strict=True)
        assert list(found) == [naive[user] for user in sorted(naive)]
    assert leave_out == (len(task.test) < len(RetrievalTask.of_log(dataset, splits).test))


def test_several_cases_of_a_user_are_his_last_ones(log):
    folder, rows = log
    dataset, splits = open_log(folder)
    one = RetrievalTask.of_log(dataset, splits).test
    task = RetrievalTask.of_log(dataset, splits, cases_per_user=3)
    expected: dict[int, list[int]] = {}
    for row in range(splits.test.start, splits.test.stop):
        if rows[row]["like"]:
            expected.setdefault(rows[row]["user_id"], []).append(row)
    assert task.test.row.tolist() == [r for user in sorted(expected) for r in expected[user][-3:]]
    assert np.isin(one.row, task.test.row).all()
    same = task.test.take(np.flatnonzero(np.isin(task.test.row, one.row)))
    assert lists(same.history) == lists(one.history)
    with pytest.raises(ValueError, match="cases_per_user is 0"):
        RetrievalTask.of_log(dataset, splits, cases_per_user=0)


def lists(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


def test_first_history_of_the_schema_is_taken(log):
    dataset, splits = open_log(log[0])
    task = RetrievalTask.of_log(dataset, splits)
    named = RetrievalTask.of_log(dataset, splits, history="seen")
    assert lists(task.test.history) == lists(named.test.history)


def test_what_a_log_lacks_is_named(log):
    dataset, splits = open_log(log[0])
    with pytest.raises(ValueError, match="history 'clicked'"):
        RetrievalTask.of_log(dataset, splits, history="clicked")
    with pytest.raises(ValueError, match="label 'love'"):
        RetrievalTask.of_log(dataset, splits, label="love")
    with pytest.raises(DataError, match="'never': expected positives in the training rows"):
        RetrievalTask.of_log(dataset, splits, label="never")


def cases_of(targets, users=None) -> RetrievalCases:
    number = len(targets)
    return RetrievalCases(
        user=np.arange(number) if users is None else np.array(users),
        row=np.arange(number),
        history=Ragged.from_lengths(np.zeros(0, np.int64), np.zeros(number, np.int64)),
        target=np.array(targets),
    )


def test_scores_against_a_loop():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(30)[:12] for _ in range(50)])
    ranked[rng.random(ranked.shape) < 0.2] = -1
    targets = rng.integers(0, 30, 50)
    scores = score_lists(ranked, cases_of(targets), at=(1, 5, 12))
    for k, found in scores.items():
        hits, gains = [], []
        for row, target in zip(ranked.tolist(), targets.tolist(), strict=True):
            hits.append(float(target in row[:k]))
            gains.append(1 / math.log2(row.index(target) + 2) if target in row[:k] else 0.0)
        np.testing.assert_array_equal(found.hit, hits)
        np.testing.assert_allclose(found.gain, gains)
        assert found.mean() == pytest.approx({"recall": np.mean(hits), "ndcg": np.mean(gains)})
    assert 0 < scores[5].mean()["recall"] < scores[12].mean()["recall"]


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="expected one for each of 2 cases, found 3"):
        score_lists(np.zeros((3, 5), np.int64), cases_of([0, 1]), at=(5,))
    with pytest.raises(ValueError, match="longer lists"):
        score_lists(np.zeros((2, 5), np.int64), cases_of([0, 1]), at=(6,))


def test_interval_draws_users_not_cases():
    rng = np.random.default_rng(1)
    user_values = rng.normal(0.3, 1.0, 200)
    one = mean_interval(user_values, np.arange(200))
    # Each user's case ten times says no more about users.
    ten = mean_interval(np.repeat(user_values, 10), np.repeat(np.arange(200), 10))
    assert ten == pytest.approx(one)
    width = one.high - one.low
    assert width == pytest.approx(2 * 1.96 * user_values.std() / math.sqrt(200), rel=0.15)
    assert one.low < one.value < one.high
