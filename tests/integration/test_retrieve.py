"""DIG on the smoke log: trained, retrieved with, measured, by functions and by the command."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from tests.integration.rank_processes import run_ranks
from tests.integration.retrieve_workers import answer, measure, refusals, train_smoke
from tests.integration.test_command_line import farewell
from trainer.data.dataset import Dataset
from trainer.data.schema import RowRange
from trainer.item_index import IndexMismatchError, ItemIndex
from trainer.predictions import Predictions
from trainer.retrieval_run import Retrieval
from trainer.retrieved_part import RetrievedPart

NUM_REQUESTS = 150  # several batches of 64
SOME = Retrieval(width=20, top=5)
EVERY = Retrieval(width=2_000, top=2_000)
"""Finds every item of the smoke log."""


@pytest.fixture(scope="module")
def impressions(dig_experiment):
    """Some rows of the test part in random order, and where they stand in the log."""
    dataset = Dataset.open(dig_experiment.data.folder, dig_experiment.data.schema)
    test = dataset.split(dig_experiment.data.split).test
    rows = np.random.default_rng(3).permutation(np.arange(test.start, test.stop))[:NUM_REQUESTS]
    log = pa.concat_tables(
        piece.read(dataset.parts.parts[0].schema.names)
        for piece in dataset.parts.pieces(RowRange(0, test.stop))
    )
    return rows, log.take(rows)


@pytest.fixture(scope="module")
def users(impressions, tmp_path_factory):
    """A file of requests: what is known before there is an item."""
    path = tmp_path_factory.mktemp("requests") / "users.parquet"
    pq.write_table(impressions[1].drop_columns(["item_id", "click", "play"]), path)
    return path


@pytest.fixture(scope="module")
def answered(dig_experiment, dig_run, users):
    """The items of each request."""
    out = users.with_name("items.parquet")
    run_ranks(answer, 1, dig_experiment, dig_run, users, out, SOME)
    return pq.read_table(out)


def test_losses_and_sids_are_logged(dig_run):
    lines = (dig_run / "metrics.jsonl").read_text()
    for name in ("recall", "commit", "sem", "u2t", "collision_rate", "drift", "u2t_group_1"):
        assert f'"train/{name}"' in lines, name


def test_result_tells_collisions_and_drift_of_the_sids(dig_run, answered):
    sids = json.loads((dig_run / "result.json").read_text())["sids"]
    assert set(sids) == {"initial_collision_rate", "collision_rate", "drift", "dead_codes"}
    assert 0 <= sids["collision_rate"] <= 1
    codes = ItemIndex.load(dig_run / "index").codes
    counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    assert sids["collision_rate"] == pytest.approx((counts[2][counts[1]] > 1).mean(), abs=1e-6)


def test_every_request_gets_its_items_best_first(answered):
    assert answered.num_rows == 5 * NUM_REQUESTS
    request, rank = answered["request"].to_numpy(), answered["rank"].to_numpy()
    score, item = answered["score"].to_numpy(), answered["item_id"].to_numpy()
    assert (request == np.repeat(np.arange(NUM_REQUESTS), 5)).all()
    assert (rank == np.tile(np.arange(1, 6), NUM_REQUESTS)).all()
    assert (np.diff(score.reshape(-1, 5)) <= 0).all()
    assert all(len(set(mine)) == 5 for mine in item.reshape(-1, 5))


def test_pairs_with_the_logs_cross_features_get_the_scores_of_training(
    dig_experiment, dig_run, impressions, users, tmp_path
):
    rows, log = impressions
    names = [
        one.name
        for one in dig_experiment.data.schema.dense_features
        if one.source == "interactions" and one.entity in ("item", "cross")
    ]
    pairs = log.select(["item_id", *names]).append_column("request", pa.array(range(len(rows))))
    shuffled = np.random.default_rng(4).permutation(len(rows))
    pq.write_table(pairs.take(shuffled), tmp_path / "pairs.parquet")
    files = tmp_path / "plain.parquet", tmp_path / "crossed.parquet"
    run_ranks(answer, 1, dig_experiment, dig_run, users, files[0], EVERY)
    run_ranks(
        answer, 1, dig_experiment, dig_run, users, files[1], EVERY, tmp_path / "pairs.parquet"
    )
    plain, crossed = (_scores(pq.read_table(path)) for path in files)
    assert plain.keys() == crossed.keys()
    assert len(plain) == NUM_REQUESTS * len(
        pq.read_table(dig_experiment.data.folder / "items.parquet")
    )
    evaluated = Predictions.load(dig_run / "predictions_test.parquet")
    click_of = dict(zip(evaluated.rows.tolist(), evaluated.scores["click"], strict=True))
    given = {}
    for request, (row, item) in enumerate(zip(rows, log["item_id"].to_pylist(), strict=True)):
        given[request, item] = click_of[row]
    found = np.array([crossed[pair] for pair in given])
    np.testing.assert_allclose(found, list(given.values()), atol=1e-5)
    assert np.abs(found - [plain[pair] for pair in given]).max() > 0.01
    others = [pair for pair in plain if pair not in given]
    np.testing.assert_array_equal([crossed[p] for p in others], [plain[p] for p in others])


def _scores(table):
    keys = zip(table["request"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    return dict(zip(keys, table["score"].to_pylist(), strict=True))


def test_a_network_that_was_sharded_retrieves_too(dig_experiment, answered, users, tmp_path):
    """FSDP on one rank trains the same weights."""
    sharding = replace(dig_experiment.sharding, fsdp_min_parameters=1)
    sharded = replace(dig_experiment, sharding=sharding)
    run_ranks(train_smoke, 1, sharded, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["uses_fsdp"]
    run_ranks(answer, 1, sharded, tmp_path / "run", users, tmp_path / "items.parquet", SOME)
    found, expected = _scores(pq.read_table(tmp_path / "items.parquet")), _scores(answered)
    both = [pair for pair in expected if pair in found]  # SIDs of equal scores may change places
    assert len(both) > 0.98 * len(expected)
    for pair in both:
        assert found[pair] == pytest.approx(expected[pair], abs=1e-4)


def test_measurement_equals_what_lists_and_scores_say(dig_experiment, dig_run, tmp_path):
    folder = dig_experiment.data.folder
    dataset = Dataset.open(folder, dig_experiment.data.schema)
    test = dataset.split(dig_experiment.data.split).test
    rows = RowRange(test.start, test.start + 300)
    run_ranks(measure, 1, dig_experiment, dig_run, rows, tmp_path)
    found = json.loads((tmp_path / "measured.json").read_text())
    part = RetrievedPart.load(tmp_path / "part.npz")
    log = dataset.read(rows, ["click", "item_id"])
    clicks = log["click"].astype(bool)
    assert found["items"] == len(pq.read_table(folder / "items.parquet"))
    assert (found["targets"], found["at"], found["beam_width"]) == (clicks.sum(), 5, 20)
    target = dataset.item_rows(log["item_id"])
    for order, lists in (("recall_order", part.by_recall_CM), ("rank_order", part.by_rank_CM)):
        recall, ndcg = [], []
        for row in np.flatnonzero(clicks):
            place = lists[row].tolist().index(target[row]) if target[row] in lists[row] else None
            recall.append(place is not None)
            ndcg.append(0 if place is None else 1 / np.log2(place + 2))
        assert 0 < np.mean(recall) < 1
        assert found[order]["recall"] == pytest.approx(np.mean(recall))
        assert found[order]["ndcg"] == pytest.approx(np.mean(ndcg))
    assert found["rank_auc"] == pytest.approx(roc_auc_score(clicks, part.rank_N))
    assert found["recall_auc"] == pytest.approx(roc_auc_score(clicks, part.recall_N))
    assert found["gap"] == pytest.approx(found["recall_auc"] - found["rank_auc"])


def test_an_index_of_other_tokens_is_refused(dig_experiment, dig_run, answered, users, tmp_path):
    other = replace(dig_experiment, train=replace(dig_experiment.train, seed=1))
    folder = tmp_path / "other"
    run_ranks(train_smoke, 1, other, folder)
    options = replace(SOME, index=dig_run / "index")
    with pytest.raises(Exception, match=IndexMismatchError.__name__):
        run_ranks(answer, 1, other, folder, users, tmp_path / "items.parquet", options)
    assert not (tmp_path / "items.parquet").exists()


def test_items_come_and_go_without_training(dig_experiment, dig_run, answered, users, tmp_path):
    """A twin of an item has its SID, and is found wherever that is."""
    index, out = tmp_path / "index", tmp_path / "items.parquet"
    before = ItemIndex.load(dig_run / "index")
    before.save(index)
    checkpoints = {path: path.stat().st_mtime_ns for path in dig_run.rglob("checkpoints/**/*")}
    path = dig_experiment.data.folder / "items.parquet"
    items = pq.read_table(path)
    place = items.schema.get_field_index("item_id")
    new = items.slice(7, 1).set_column(place, "item_id", pa.array([10**6])).cast(items.schema)
    twin = items["item_id"][7].as_py()
    try:
        pq.write_table(pa.concat_tables([items, new]), path)
        options = replace(EVERY, index=index)
        run_ranks(answer, 1, dig_experiment, dig_run, users, out, options)
        after = ItemIndex.load(index)
    finally:
        pq.write_table(items, path)
    assert after.changes_since(before) == "1 items new, 0 gone, 0 with another SID"
    assert after.tokens == before.tokens
    assert (after.codes[-1] == after.codes[after.item_ids == twin]).all()
    scores = _scores(pq.read_table(out))
    for request in range(NUM_REQUESTS):
        assert scores[request, 10**6] == pytest.approx(scores[request, twin], abs=1e-6)
    assert checkpoints == {path: path.stat().st_mtime_ns for path in checkpoints}
    run_ranks(answer, 1, dig_experiment, dig_run, users, out, options)
    assert ItemIndex.load(index).fingerprint == before.fingerprint
    assert 10**6 not in pq.read_table(out)["item_id"].to_pylist()


def _without(column):
    return lambda table: table.drop_columns([column])


def _with(column, at, value):
    def changed(table):
        values = table[column].to_pylist()
        values[at] = value
        place = table.schema.get_field_index(column)
        return table.set_column(place, column, pa.array(values, table.schema.field(column).type))

    return changed


BAD_REQUESTS = {
    "requests without users": (_without("user_id"), "column 'user_id': expected it for every"),
    "requests without a history": (_without("history"), "column 'history': expected it for every"),
    "no requests": (lambda table: table.slice(0, 0), "expected at least one request"),
    "an unknown item in a history": (_with("history", 3, [10**9]), "1000000000"),
    "nan": (_with("user_mean", 2, float("nan")), "user_mean"),
}
BAD_PAIRS = {
    "pairs without items": (_without("item_id"), "column 'item_id': expected it, found"),
    "pairs without a feature": (_without("item_mean"), "column 'item_mean': expected it, found"),
    "a request that is not there": (
        _with("request", 0, NUM_REQUESTS),
        f"expected rows of the requests' file, 0 to {NUM_REQUESTS - 1}, found 1 to {NUM_REQUESTS}",
    ),
    "an item that is not there": (
        _with("item_id", 1, 10**9),
        "1 unknown ids, the first 1000000000",
    ),
    "a pair twice": (lambda table: pa.concat_tables([table, table.slice(4, 1)]), "a pair twice"),
    "nan in a pair": (_with("item_mean", 5, float("nan")), "item_mean"),
}


def test_wrong_requests_and_pairs_are_named(
    dig_experiment, dig_run, answered, impressions, users, tmp_path
):
    requests = pq.read_table(users)
    pairs = impressions[1].append_column("request", pa.array(range(NUM_REQUESTS)))
    files = {}
    for number, (name, (change, _)) in enumerate(BAD_REQUESTS.items()):
        files[name] = tmp_path / f"users_{number}.parquet", None
        pq.write_table(change(requests), files[name][0])
    for number, (name, (change, _)) in enumerate(BAD_PAIRS.items()):
        files[name] = users, tmp_path / f"pairs_{number}.parquet"
        pq.write_table(change(pairs), files[name][1])
    truncated = tmp_path / "truncated.parquet"
    truncated.write_bytes(users.read_bytes()[:-100])
    files["truncated"] = truncated, None
    run_ranks(refusals, 1, dig_experiment, dig_run, files, tmp_path / "said.json")
    said = json.loads((tmp_path / "said.json").read_text())
    assert said.pop("left behind") == []
    assert str(truncated) in said.pop("truncated")
    expected = {name: message for name, (_, message) in (BAD_REQUESTS | BAD_PAIRS).items()}
    assert said.keys() == expected.keys()
    for name, message in expected.items():
        assert message in said[name], name


def _options(experiment):
    """A run of `dig_experiment` as the command line says it."""
    return [
        *("--data.folder", experiment.data.folder, "--data.shuffle-rows", "2048"),
        *("--train.max-steps", "12", "--train.precision", "fp32", "--train.log-every", "4"),
        *("--model.track-every", "5"),
    ]


def test_command_measures_and_answers(dig_experiment, dig_run, users, tmp_path):
    words = ["retrieve", "dig.smoke", "--folder", dig_run, *_options(dig_experiment)]
    found = farewell(tmp_path, *words, "--split", "test", "--json", "found.json", "--top", 5)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "recall@5, beam search" in found.stdout
    assert "AUC of the retrieval path" in found.stdout
    measured = json.loads((tmp_path / "found.json").read_text())
    assert measured["split"] == "test"
    assert f"{measured['rank_order']['recall']:.4f}" in found.stdout
    found = farewell(tmp_path, *words, "--users", users, "--out", "items.parquet", "--top", 3)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"items of {NUM_REQUESTS} requests" in found.stdout
    assert len(pq.read_table(tmp_path / "items.parquet")) == 3 * NUM_REQUESTS


def test_command_refuses_a_model_that_does_not_retrieve(dig_experiment, dig_run, tmp_path):
    words = ["retrieve", "dig.smoke", "--folder", dig_run, *_options(dig_experiment)]
    found = farewell(tmp_path, *words, "--split", "test", "--model.recall-weight", "0")
    assert found.returncode != 0
    assert "has no retrieval path" in found.stderr
    assert "Traceback" not in found.stderr
