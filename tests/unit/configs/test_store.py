import inspect

import pytest

from configs import datasets, store, store_rows
from configs.sizes import dense_parameters
from launch.named import load_named
from trainer.comparison import Comparison
from trainer.experiment import Experiment
from trainer.models.store import StoreConfig

STUDIES = ("main", "components", "epochs", "num_sids", "layers", "sparsity", "ranks", "sources")
LOGS = ("movielens1m", "synthetic_high_churn", "smoke")


@pytest.fixture(scope="module")
def smoke():
    return {study: load_named(f"store.{study}_smoke", Comparison) for study in STUDIES}


def fingerprints(comparison):
    return {row.title: row.experiment.fingerprint for row in comparison.rows}


def test_every_study_has_a_name_on_every_log(smoke):
    own = {
        name
        for name, value in vars(store).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation == "Comparison"
    }
    alone = {"main_movielens1m_collm", "main_avazu"}  # logs with one study
    assert own == {f"{study}_{log}" for study in STUDIES for log in LOGS} | alone
    assert {name: study.name for name, study in smoke.items()} == {
        name: f"store.{name}_smoke" for name in STUDIES
    }


def test_named_experiments_are_the_rows_of_studies(smoke):
    alone = load_named("store.smoke", Experiment).fingerprint
    assert alone == fingerprints(smoke["main"])["STORE"]
    assert alone == fingerprints(smoke["components"])["STORE"]
    assert alone == fingerprints(smoke["epochs"])["semantic IDs, 1 epoch"]
    assert alone == fingerprints(smoke["layers"])["2 layers"]
    assert alone == fingerprints(smoke["sources"])["STORE"]
    assert alone == fingerprints(smoke["num_sids"])["4 semantic IDs"]
    sasrec = "STORE, codes of SASRec"
    assert fingerprints(smoke["main"])[sasrec] == fingerprints(smoke["sources"])[sasrec]
    assert sasrec not in fingerprints(load_named("store.main_avazu", Comparison))
    raw = fingerprints(smoke["components"])["raw item IDs"]
    assert raw == fingerprints(smoke["epochs"])["raw item IDs, 1 epoch"]
    four = fingerprints(smoke["main"])["STORE, 4 epochs"]
    assert four == fingerprints(smoke["epochs"])["semantic IDs, 4 epochs"]


def test_rows_of_a_study_are_different_experiments(smoke):
    for comparison in smoke.values():
        found = fingerprints(comparison)
        assert len(set(found.values())) == len(found), comparison.name


def test_dense_parameters_of_the_main_table_agree_within_five_percent(smoke):
    rows = [row for row in smoke["main"].rows if row.tower != "FM"]
    sizes = [dense_parameters(row.experiment) for row in rows]
    assert max(sizes) / min(sizes) < 1.05
    assert len(rows) == 13


def test_ablations_change_what_they_say(smoke):
    rows = {row.title: row.experiment for row in smoke["components"].rows}
    whole = rows["STORE"]
    assert whole.tokenizer.tokenizer.kind == "opmq"
    assert whole.model.tower.sparsity == 0.5
    for title, kind in (("OPQ", "opq"), ("RQ-VAE", "rq_vae")):
        assert rows[title].tokenizer.tokenizer.kind == kind
        assert rows[title].tokenizer.num_levels == whole.tokenizer.num_levels
        assert rows[title].model == whole.model
    assert rows["raw item IDs"].tokenizer is None
    assert rows["raw item IDs"].model.tower == whole.model.tower
    assert rows["without rotation"].model.tower.rotation == "none"
    assert rows["vanilla attention"].model.tower.sparsity == 0.0


def test_sweeps_change_one_thing(smoke):
    def changed(study, field):
        return [getattr(row.experiment.model.tower, field) for row in smoke[study].rows]

    assert changed("num_sids", "num_tokens") == [2, 4, 8]
    assert changed("layers", "num_layers") == [1, 2, 3, 4]
    assert changed("sparsity", "sparsity") == [0.0, 0.25, 0.5, 0.75]
    assert [row.experiment.train.num_epochs for row in smoke["epochs"].rows] == [1, 2, 3, 4] * 2


def test_groups_hold_every_feature_of_a_log_once():
    source = datasets.movielens1m()
    names = [name for group in store_rows.groups(source) for name in group]
    features = {feature.name for feature in source.data.schema.pooled_features}
    assert features < set(names)
    assert len(names) == len(set(names)) == len(features) + 4
    assert store_rows.groups(source)[0][0] == "user_id"


def test_an_odd_number_of_tokens_leaves_out_the_smaller_half():
    source = datasets.smoke()
    tower = store_rows.tower(source, 3, group_dim=4, ffn_dim=8)
    assert isinstance(tower, StoreConfig)
    assert tower.sparsity == pytest.approx(1 / 3)
    assert store_rows.tower(source, 1, group_dim=4, ffn_dim=8).block_size is None


def test_gains_of_the_paper_are_relative(smoke):
    gains = {row.title: row.paper for row in smoke["main"].rows}
    assert gains["STORE"][0].auc == pytest.approx(100 * (0.7479 / 0.7461 - 1))
    assert gains["OneTrans (ID)"][0].auc == 0
