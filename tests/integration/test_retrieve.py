"""DIG on the smoke log: trained, retrieved with, measured."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.rank_processes import run_ranks
from tests.integration.retrieve_workers import answer, train_smoke
from trainer.item_index import IndexMismatchError, ItemIndex


@pytest.fixture(scope="module")
def run(dig_experiment, dig_run):
    """A trained run, with requests answered and the first rows of the test part measured."""
    folder = dig_run
    users = folder / "users.parquet"
    log = pq.read_table(dig_experiment.data.folder / "interactions" / "part-00000.parquet")
    kept = log.slice(len(log) - 30).drop_columns(["item_id", "click", "play", "timestamp"])
    pq.write_table(kept, users)
    run_ranks(answer, 1, dig_experiment, folder, users)
    return folder


def test_losses_and_sids_are_logged(run):
    lines = (run / "metrics.jsonl").read_text()
    for name in ("recall", "commit", "sem", "u2t", "collision_rate", "drift", "u2t_group_1"):
        assert f'"train/{name}"' in lines, name


def test_result_tells_collisions_and_drift_of_the_sids(run):
    sids = json.loads((run / "result.json").read_text())["sids"]
    assert set(sids) == {"initial_collision_rate", "collision_rate", "drift", "dead_codes"}
    assert 0 <= sids["collision_rate"] <= 1
    codes = ItemIndex.load(run / "index").codes
    counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    assert sids["collision_rate"] == pytest.approx((counts[2][counts[1]] > 1).mean(), abs=1e-6)


def test_every_request_gets_its_items_best_first(run):
    found = pq.read_table(run / "items.parquet").to_pydict()
    request, rank = np.array(found["request"]), np.array(found["rank"])
    score = np.array(found["score"])
    assert sorted(set(request)) == list(range(30))
    for one in range(30):
        mine = request == one
        assert rank[mine].tolist() == [1, 2, 3, 4, 5]
        assert (np.diff(score[mine]) <= 0).all()
        assert len(set(np.array(found["item_id"])[mine])) == 5


def test_pairs_change_the_ranking_of_their_items_alone(run):
    plain = pq.read_table(run / "items.parquet").to_pydict()
    crossed = pq.read_table(run / "items_cross.parquet").to_pydict()
    before = dict(
        zip(zip(plain["request"], plain["item_id"], strict=True), plain["score"], strict=True)
    )
    after = dict(
        zip(zip(crossed["request"], crossed["item_id"], strict=True), crossed["score"], strict=True)
    )
    given = (plain["request"][0], plain["item_id"][0])
    assert after.get(given) != before[given]
    same = [pair for pair in before if pair in after and pair != given]
    assert len(same) >= 140
    assert all(abs(after[pair] - before[pair]) < 1e-6 for pair in same)


def test_measurement_is_of_the_whole_catalogue(run):
    found = json.loads((run / "measured.json").read_text())
    assert 0 <= found["recall_order"]["ndcg"] <= found["recall_order"]["recall"] <= 1
    assert 0.3 < found["recall_auc"] < 1
    assert found["gap"] == pytest.approx(found["recall_auc"] - found["rank_auc"])
    assert found["targets"] > 10


def test_an_index_of_other_tokens_is_refused(run, dig_experiment, tmp_path):
    other = replace(dig_experiment, train=replace(dig_experiment.train, seed=1))
    folder = tmp_path / "other"
    run_ranks(train_smoke, 1, other, folder)
    with pytest.raises(Exception, match=IndexMismatchError.__name__):
        run_ranks(answer, 1, other, folder, run / "users.parquet", run / "index")


def test_a_new_item_enters_the_index_without_training(run, dig_experiment):
    before = ItemIndex.load(run / "index")
    path = dig_experiment.data.folder / "items.parquet"
    items = pq.read_table(path)
    new = items.slice(7, 1).set_column(
        items.schema.get_field_index("item_id"), "item_id", pa.array([10**6])
    )
    try:
        pq.write_table(pa.concat_tables([items, new.cast(items.schema)]), path)
        run_ranks(answer, 1, dig_experiment, run, run / "users.parquet")
    finally:
        pq.write_table(items, path)
    after = ItemIndex.load(run / "index")
    assert after.tokens == before.tokens
    assert after.item_ids.tolist() == [*before.item_ids.tolist(), 10**6]
    assert (after.codes[:-1] == before.codes).all()
    twin = items["item_id"][7].as_py()
    assert (after.codes[-1] == after.codes[after.item_ids == twin]).all()
