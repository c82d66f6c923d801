from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from trainer.data import synthetic
from trainer.data.dataset import Dataset
from trainer.data.streaming_auc import StreamingAUC
from trainer.data.synthetic import SyntheticLog, write_synthetic
from trainer.data.synthetic_config import (
    DAY,
    START,
    SyntheticConfig,
    high_churn,
    low_churn,
    schema,
)
from trainer.data.synthetic_world import SyntheticWorld

CONFIG = SyntheticConfig(
    num_rows=120_003, num_items=1_000, num_users=2_000, num_queries=300, days=5, churn=0.2
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    manifest = write_synthetic(CONFIG, folder)
    return folder, manifest, pq.read_table(folder / "interactions")


def column(table, name):
    return table[name].to_numpy()


def test_the_folder_fits_its_schema(written):
    folder, manifest, log = written
    Dataset.open(folder, schema(CONFIG)).validate()
    assert log.num_rows == manifest.num_rows == CONFIG.num_rows
    names = {feature.name for feature in schema(CONFIG).features}
    assert not names & {"p_click", "p_play", "item_id", "embedding", "title"}


def test_labels_follow_their_probabilities(written):
    _, _, log = written
    for label, rate in (("click", 0.2), ("play", 0.08)):
        truth, drawn = column(log, f"p_{label}"), column(log, label)
        assert truth.mean() == pytest.approx(rate, rel=0.06)
        # Calibrated overall and in each tenth of the probabilities, to four standard errors.
        for part in np.array_split(np.argsort(truth), 10):
            error = np.sqrt((truth[part] * (1 - truth[part])).sum())
            assert abs(drawn[part].sum() - truth[part].sum()) < 4 * error
    assert not np.any(column(log, "play") > column(log, "click"))
    assert not np.any(column(log, "p_play") > column(log, "p_click"))


def test_the_best_auc_is_told_and_sensible(written):
    _, manifest, log = written
    for label in ("click", "play"):
        exact = roc_auc_score(column(log, label), column(log, f"p_{label}"))
        assert manifest.facts[f"bayes_auc_{label}"] == pytest.approx(exact, abs=2e-5)
    assert 0.75 < manifest.facts["bayes_auc_click"] < 0.85


@pytest.mark.parametrize("preset", [high_churn(), low_churn(), CONFIG])
def test_content_does_not_tell_the_idiosyncratic_share(preset):
    log = SyntheticLog(replace(preset, num_rows=40_000))
    parts = np.concatenate([log.item_logits(rows, 0) for rows, _ in log.blocks()], axis=1)
    assert parts[1].var() / parts.sum(axis=0).var() >= 0.3
    world = log.world
    embedding = np.stack(world.item_table()["embedding"].to_numpy())
    content = np.column_stack(
        [embedding, np.eye(preset.num_nodes[1])[world.category_2_I], np.ones(len(embedding))]
    )
    fit, held_out = np.arange(len(content)) % 2 == 0, np.arange(len(content)) % 2 == 1

    def explained(latent):
        weights = np.linalg.lstsq(content[fit], latent[fit], rcond=None)[0]
        left = latent[held_out] - content[held_out] @ weights
        return 1 - left.var() / latent[held_out].var()

    assert explained(world.semantic_ID) > 0.7
    assert explained(world.idiosyncratic_ID) < 0.03


def test_items_are_born_and_retired_at_the_chosen_rate(written):
    folder, manifest, log = written
    born = column(pq.read_table(folder / "items.parquet"), "created_at")
    births = np.histogram(born, bins=START + DAY * np.arange(CONFIG.days + 1))[0]
    assert births.tolist() == [200] * CONFIG.days
    assert manifest.facts["churn_per_day"] == pytest.approx(0.2)
    items, times = column(log, "item_id"), column(log, "timestamp")
    assert np.all(born[items] <= times)
    # Each day's births take as many places: what is gone stays gone.
    world = SyntheticWorld(CONFIG)
    slots = np.arange(CONFIG.num_items)
    days = [world.items_at(slots, np.full_like(slots, d * DAY)) for d in range(CONFIG.days)]
    for today, tomorrow in pairwise(days):
        assert len(np.setdiff1d(today, tomorrow)) == len(np.setdiff1d(tomorrow, today)) == 200
    assert not np.intersect1d(np.setdiff1d(days[0], days[1]), np.concatenate(days[1:])).size


def test_items_at_agrees_with_a_walk_through_births():
    config = replace(CONFIG, num_items=300, days=3, churn=0.5)
    world = SyntheticWorld(config)
    rng = np.random.default_rng(0)
    slots, seconds = rng.integers(300, size=500), rng.integers(3 * DAY, size=500)
    for slot, second, found in zip(slots, seconds, world.items_at(slots, seconds), strict=True):
        housed = np.flatnonzero((world.slot_I == slot) & (world.born_I <= START + second))
        assert found == housed[np.argmax(world.born_I[housed])]


def test_exposure_is_zipf_like(written):
    world = SyntheticWorld(CONFIG)
    slots = world.sample_slots(np.random.default_rng(0).random(400_000))
    counts = np.sort(np.bincount(slots, minlength=CONFIG.num_items))[::-1]
    ranks = np.arange(1, 301)
    slope = np.polyfit(np.log(ranks), np.log(counts[:300]), 1)[0]
    assert slope == pytest.approx(-CONFIG.zipf_exponent, abs=0.05)
    _, _, log = written
    shown = np.sort(np.bincount(column(log, "item_id")))[::-1]
    assert shown[: len(shown) // 10].sum() > 0.4 * shown.sum()


def test_half_of_a_page_fits_the_query():
    log = SyntheticLog(CONFIG)
    rows, _ = next(log.blocks())
    item_node = log.world.leaf_I[rows.items] // CONFIG.branching[2]
    fits = item_node == log.world.query_node_Q[rows.queries]
    assert 0.5 <= fits.mean() < 0.56
    assert np.bincount(rows.requests).max() == 10
    assert np.mean(fits.reshape(-1, 10)[:, 0]) == pytest.approx(fits.mean(), abs=0.03)


def test_equal_configs_give_equal_logs_and_other_seeds_do_not(tmp_path, written):
    _, _, log = written
    write_synthetic(CONFIG, tmp_path / "again")
    again = pq.read_table(tmp_path / "again" / "interactions")
    assert again.equals(log)
    write_synthetic(replace(CONFIG, seed=2), tmp_path / "other")
    assert not pq.read_table(tmp_path / "other" / "interactions")["click"].equals(log["click"])


def test_worlds_that_differ_in_churn_share_the_rest():
    high, low = (SyntheticWorld(replace(CONFIG, churn=churn)) for churn in (0.5, 0.0))
    first = slice(0, CONFIG.num_items)
    np.testing.assert_array_equal(high.semantic_ID[first], low.semantic_ID[first])
    np.testing.assert_array_equal(high.idiosyncratic_ID[first], low.idiosyncratic_ID[first])
    np.testing.assert_array_equal(high.user_UD, low.user_UD)
    np.testing.assert_array_equal(high.query_QD, low.query_QD)
    assert len(low.born_I) == CONFIG.num_items


def test_a_log_in_one_block_and_a_single_item_per_page(monkeypatch):
    config = replace(CONFIG, num_rows=100, impressions_per_request=1)
    monkeypatch.setattr(synthetic, "CALIBRATION_REQUESTS", 500)
    (rows, outcomes), *rest = SyntheticLog(config).blocks()
    assert len(rows.users) == len(outcomes.click) == 100
    assert not rest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": 0}, "num_rows is 0"),
        ({"churn": 1.5}, "churn is 1.5, expected 0 to 1"),
        ({"click_rate": 0.0}, "click_rate is 0.0"),
        ({"num_items": 100}, "num_items is 100, expected at least one for each of the 256"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_streaming_auc_equals_the_exact_one():
    rng = np.random.default_rng(0)
    truth = rng.choice([0.1, 0.25, 0.5, 0.9], 5_000)
    labels = (rng.random(5_000) < truth).astype(np.int8)
    auc = StreamingAUC()
    for part in np.array_split(np.arange(5_000), 7):
        auc.update(truth[part], labels[part])
    assert auc.compute() == pytest.approx(roc_auc_score(labels, truth), abs=1e-12)
    assert np.isnan(StreamingAUC().compute())
