"""Co-click vectors beside the texts of a DIG model's items."""

import io
import shlex
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from configs import datasets, dig
from configs.dig_studies import DigLog
from launch.embed import main as embed_main
from launch.embed_options import EmbedArgs
from launch.prepare import prepare
from tokenization.co_clicks import CoClicks
from tokenization.embedding_table import EmbeddingTable
from trainer.data.dataset import Dataset
from trainer.data.synthetic import write_synthetic
from trainer.run_inputs import catalogue

WORLD = replace(datasets.SMOKE, num_rows=4000, num_items=150, churn=0.3, branching=(4, 2, 2))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_synthetic(WORLD, folder)
    return folder


@pytest.fixture
def experiment(written, tmp_path):
    """The log is shared; the file of embeddings is the test's own."""
    base = dig.smoke()
    data = replace(base.data, folder=written)
    log = DigLog(experiment=replace(base, data=data), name="smoke", small=True)
    made = log.co_clicks()
    item = replace(made.model.item, embeddings=tmp_path / "co_click_embeddings.parquet")
    return replace(made, model=replace(made.model, item=item))


def prepared(experiment):
    shown = io.StringIO()
    prepare(experiment, Console(file=shown, width=200))
    return shown.getvalue()


def test_training_rows_alone_are_read_and_the_command_shown_makes_the_same(experiment, capsys):
    item = experiment.model.item
    shown = prepared(experiment)
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    train = dataset.split(experiment.data.split).train
    table = EmbeddingTable.load(item.embeddings)
    assert table.made["log_rows"] == train.stop
    assert table.embeddings.shape == (dataset.num_items, item.text_dim)
    columns = dataset.read(train, ["item_id", "click"])
    clicked = np.isin(table.item_ids, columns["item_id"][columns["click"] > 0])
    assert 0 < (~clicked).sum() < dataset.num_items
    np.testing.assert_array_equal(table.embeddings[~clicked, :16], 0)
    found = catalogue(experiment, dataset).text_NE.numpy()
    np.testing.assert_array_equal(
        found,
        table.embeddings[np.argsort(table.item_ids)][
            np.searchsorted(np.sort(table.item_ids), dataset.item_ids)
        ],
    )

    again = item.embeddings.with_name("again.parquet")
    words = shlex.split(
        shown.replace("$ farewell embed", "").replace(str(item.embeddings), str(again))
    )
    embed_main(words)
    np.testing.assert_array_equal(EmbeddingTable.load(again).embeddings, table.embeddings)
    assert not prepared(experiment)  # nothing is missing any more


def test_embeddings_that_know_the_evaluation_or_have_other_settings_are_refused(experiment):
    item = experiment.model.item
    prepared(experiment)
    narrow = replace(item, co_clicks=CoClicks(dim=16, window=2))
    with pytest.raises(ValueError, match=r"was made with co-clicks .*'window': 5.* wants .*: 2"):
        prepared(replace(experiment, model=replace(experiment.model, item=narrow)))
    table = EmbeddingTable.load(item.embeddings)
    rows = table.made["log_rows"] + 1
    replace(table, made={**table.made, "log_rows": rows}).save(item.embeddings)
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    for check in (prepared, lambda one: catalogue(one, dataset)):
        with pytest.raises(ValueError, match=f"made with the first {rows} rows of the log"):
            check(experiment)
    item.embeddings.write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="expected a whole parquet file"):
        prepared(experiment)


def test_texts_are_embedded_first_where_they_are_missing(experiment, tmp_path):
    base = replace(experiment, data=replace(experiment.data, folder=tmp_path / "none"))
    with pytest.raises(ValueError, match="none"):
        prepared(base)
    content = tmp_path / "texts.parquet"
    ids = pq.read_table(experiment.data.folder / "items.parquet")["item_id"].to_numpy()
    EmbeddingTable(item_ids=ids, embeddings=np.eye(len(ids), 3, dtype=np.float32) + 1).save(content)
    item = replace(experiment.model.item, content=content, text_dim=19)
    shown = prepared(replace(experiment, model=replace(experiment.model, item=item)))
    assert f"--items {content}" in shown
    assert EmbeddingTable.load(item.embeddings).embeddings.shape == (len(ids), 19)


def test_settings_without_sense_are_refused(experiment, tmp_path):
    item = experiment.model.item
    with pytest.raises(ValueError, match="expected a file of its own"):
        replace(item, content=item.embeddings)
    with pytest.raises(ValueError, match=r"text_dim is 16, expected that of the texts and of"):
        replace(item, text_dim=16)
    for other in ("align_log", "sasrec_log"):
        with pytest.raises(ValueError, match="co_click_log: expected neither"):
            EmbedArgs(items=tmp_path, out=tmp_path, co_click_log=tmp_path, **{other: tmp_path})
