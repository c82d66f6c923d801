"""A DIG run is exported: the ranking path, with items that are encoded already."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from tests.integration.rank_processes import run_ranks
from tests.integration.retrieve_workers import train_smoke
from tokenization.embedding_table import EmbeddingTable
from trainer.data.errors import DataError
from trainer.predictions import Predictions
from trainer.serving.encoded_items import E_ND
from trainer.serving.export import TrainedRun, export_run
from trainer.serving.folder import ServingError
from trainer.serving.measure import TOLERANCE
from trainer.serving.predictor import Predictor


@pytest.fixture(scope="module")
def exported(dig_run, tmp_path_factory):
    """Folders of exports by kind of rows."""
    root = tmp_path_factory.mktemp("exported")
    run = TrainedRun.open(dig_run, checkpoint="newest")
    for rows in ("fp32", "int8"):
        export_run(run, root / rows, rows=rows)
    return root


@pytest.fixture(scope="module")
def log(dig_run):
    """The test part's columns, and what training's evaluation said of it."""
    run = TrainedRun.open(dig_run)
    dataset = run.dataset()
    test = dataset.split(run.split).test
    names = dataset.parts.parts[0].schema.names
    table = pa.concat_tables(piece.read(names) for piece in dataset.parts.pieces(test))
    return table, Predictions.load(dig_run / "predictions_test.parquet").aligned(test)


@pytest.mark.parametrize("rows", ["fp32", "int8"])
def test_scores_equal_those_of_training_within_the_stated_tolerance(exported, log, rows):
    table, evaluated = log
    scores = Predictor.load(exported / rows).score_table(table)
    for task, expected in evaluated.items():
        assert expected.std() > 0.01
        assert np.abs(scores[task] - expected).max() <= TOLERANCE[rows]


def test_what_ranking_does_not_read_is_left_out(exported, dig_run):
    weights = load_file(exported / "fp32" / "network.safetensors")
    run = TrainedRun.open(dig_run)
    assert {name.split(".")[0] for name in weights} >= {"encoder", "item_norm", "tower"}
    assert [name for name in weights if name.startswith("encoder")] == [E_ND]
    assert not [name for name in weights if name.split(".")[0] in ("quantizer", "token_cross")]
    assert weights[E_ND].shape == (run.dataset().num_items, run.model.item.dim)
    tables = Predictor.load(exported / "fp32").description.tables
    assert {table.name for table in tables} == {t.name for t in run.tables if t.pooling != "none"}
    assert len(tables) < len(run.tables)


def test_an_item_that_was_not_encoded_is_refused(exported, log):
    table, _ = log
    predictor = Predictor.load(exported / "fp32")
    request = {
        name: value[0]
        for name, value in table.select(predictor.columns(table.column_names)).to_pydict().items()
    }
    assert 0 < predictor.score(request)["click"] < 1
    for changed in ({"item_id": 10**12}, {"history": [10**12]}):
        with pytest.raises(DataError, match=r"has encoded, found 1 others, the first 10000000"):
            predictor.score({**request, **changed})


@pytest.mark.parametrize("rests", [{"fixed_after": 3}, {"fixed": True}], ids=str)
def test_a_model_whose_encoder_rests_is_served(rests, dig_experiment, tmp_path):
    item = replace(dig_experiment.model.item, **rests)
    experiment = replace(
        dig_experiment,
        model=replace(dig_experiment.model, item=item),
        train=replace(dig_experiment.train, max_steps=5),
    )
    run_ranks(train_smoke, 1, experiment, tmp_path / "run")
    run = TrainedRun.open(tmp_path / "run")
    dataset = run.dataset()
    test = dataset.split(run.split).test
    names = dataset.parts.parts[0].schema.names
    table = pa.concat_tables(piece.read(names) for piece in dataset.parts.pieces(test))
    evaluated = Predictions.load(tmp_path / "run" / "predictions_test.parquet").aligned(test)
    export_run(run, tmp_path / "export", rows="fp32")
    scores = Predictor.load(tmp_path / "export").score_table(table)
    for task, expected in evaluated.items():
        assert np.abs(scores[task] - expected).max() <= TOLERANCE["fp32"]


def test_embeddings_made_in_another_way_are_refused(dig_run, tmp_path):
    run = TrainedRun.open(dig_run)
    dataset = run.dataset()
    table = EmbeddingTable(
        item_ids=dataset.item_ids,
        embeddings=np.ones((dataset.num_items, run.model.item.text_dim), np.float32),
        made={"encoder": "minilm", "log_rows": 7},
    )
    table.save(tmp_path / "embeddings.parquet")
    path = str(tmp_path / "embeddings.parquet")
    item = replace(run.model.item, embedding_column=None, embeddings=path)
    moved = replace(run, model=replace(run.model, item=item))
    run.source.state["item_embeddings"] = {"encoder": "minilm", "log_rows": 7}
    export_run(moved, tmp_path / "same", rows="fp32")
    run.source.state["item_embeddings"] = {"encoder": "minilm", "log_rows": 6}
    with pytest.raises(ValueError, match=r"as many rows of the log"):
        export_run(moved, tmp_path / "other", rows="fp32")
    run.source.state["item_embeddings"] = {"encoder": "bge", "log_rows": 7}
    with pytest.raises(
        ValueError, match=r"made with .*minilm.*trained on embeddings made with .*bge"
    ):
        export_run(moved, tmp_path / "other", rows="fp32")
    assert not (tmp_path / "other").exists()


def test_cross_features_that_follow_the_log_s_rows_are_refused(dig_run, tmp_path):
    run = TrainedRun.open(dig_run)
    some = replace(run, model=replace(run.model, cross_share=0.5))
    with pytest.raises(ServingError, match="a request does not have"):
        export_run(some, tmp_path / "some")
    assert not (tmp_path / "some").exists()


def test_text_embeddings_may_be_a_file(dig_run, tmp_path):
    """A checkpoint's documents hold the path as text."""
    run = TrainedRun.open(dig_run)
    items = run.dataset().folder / "items.parquet"
    item = replace(run.model.item, embedding_column=None, embeddings=str(items))
    moved = replace(run, model=replace(run.model, item=item))
    export_run(moved, tmp_path / "file", rows="fp32")
    export_run(run, tmp_path / "column", rows="fp32")
    files = [load_file(tmp_path / one / "network.safetensors") for one in ("file", "column")]
    assert (files[0][E_ND] == files[1][E_ND]).all()
