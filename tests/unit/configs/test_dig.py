import inspect
from dataclasses import replace
from pathlib import Path

import pytest

from configs import datasets, dig, dig_public
from launch.named import load_named
from launch.retrieval_rows import has_retrieval_path
from trainer.comparison import Comparison
from trainer.experiment import Experiment

STUDIES = ("main", "ranking", "gap", "end_to_end", "u2i", "mean", "levels", "completeness")
LOGS = ("movielens1m", "movielens1m_last_click", "amazon_beauty", "smoke")


@pytest.fixture(scope="module")
def smoke():
    return {study: load_named(f"dig.{study}_smoke", Comparison) for study in STUDIES}


def test_every_study_has_a_name_on_every_log(smoke):
    own = {
        name
        for name, value in vars(dig).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation == "Comparison"
    }
    assert own == {f"{study}_{log}" for study in STUDIES for log in LOGS}
    assert {study: one.name for study, one in smoke.items()} == {
        study: f"dig.{study}_smoke" for study in STUDIES
    }


@pytest.mark.parametrize("log", LOGS)
def test_rows_of_a_study_are_different_experiments_and_whole_dig_is_one(log):
    whole = load_named(f"dig.{log}", Experiment).fingerprint
    for study in STUDIES:
        comparison = load_named(f"dig.{study}_{log}", Comparison)
        found = {row.title: row.experiment.fingerprint for row in comparison.rows}
        assert len(set(found.values())) == len(found), comparison.name
        assert found["DIG"] == whole


def test_rows_without_a_retrieval_path_only_rank(smoke):
    rows = {row.title: row.experiment for row in smoke["completeness"].rows}
    assert [title for title, one in rows.items() if not has_retrieval_path(one)] == [
        title for title in rows if title.startswith("rank only")
    ]
    assert smoke["ranking"].retrieval is None


def test_retrievers_have_tokens_of_digs_shape():
    main = dig.main_movielens1m()
    titles = [one.title for one in main.retrieval.retrievers]
    assert titles[-6:] == ["TIGER", "LETTER", "DAS", "DOS", "ETEGRec", "TRM"]
    assert titles[0] == "popularity"
    for one in main.retrieval.retrievers[-6:]:
        tokenizer = one.joint.tokenizer if one.title == "ETEGRec" else one.tokenizer
        assert (tokenizer.num_levels, tokenizer.num_codes) == (4, 256), one.title


def test_main_has_dig_on_co_clicks_where_items_have_texts():
    for study, text_dim, content in (
        (dig.main_amazon_beauty(), 384 + 128, Path("data/amazon_beauty_sampled")),
        (dig.main_movielens1m(), 384 + 128, Path("data/movielens1m")),
        (dig.main_smoke(), 16 + datasets.SMOKE.embedding_dim, None),
    ):
        plain, of_clicks = (row.experiment for row in study.rows)
        item = of_clicks.model.item
        assert item.text_dim == text_dim
        assert item.content == plain.model.item.embeddings
        assert item.content is None or item.content.parent == content
        assert item.embeddings == plain.data.folder / "co_click_embeddings.parquet"
        own = {**vars(item)}
        for name in ("text_dim", "embeddings", "embedding_column"):
            own[name] = getattr(plain.model.item, name)
        assert {name: own[name] for name in vars(plain.model.item)} == vars(plain.model.item)
        assert replace(of_clicks.model, item=plain.model.item) == plain.model
    assert [row.title for row in dig_public.main_taobao_ad().rows] == ["DIG"]


def test_generative_rows_end_by_validation_with_a_stated_maximum():
    logs = [dig.main_amazon_beauty(), dig.main_movielens1m(), dig.main_movielens1m_last_click()]
    every = [one for log in logs for one in log.retrieval.retrievers]
    rows = [one for one in every if hasattr(one, "training")]
    assert len(rows) == 6 * len(logs)
    for one in rows:
        assert (one.generator.dim, one.generator.num_layers) == (64, 2)
        assert one.training.patience * one.training.check_every < one.training.num_epochs


def test_sweep_names_each_share_in_both_series(smoke):
    points = smoke["completeness"].study.sweep.points
    assert sorted(points.values()) == sorted(
        (title, 100 * share) for title in ("DIG", "rank only") for share in (0, 0.25, 0.5, 1)
    )
