"""Tokens that are fitted on a SASRec of the log's own clicks."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from configs import datasets
from configs.store_rows import StoreRow, of_behaviour, tower
from launch.embed_options import EmbedArgs
from launch.prepare import prepare
from tokenization.artifact import TokenArtifact
from tokenization.embedding_table import EmbeddingTable
from tokenization.opmq import OPMQ
from tokenization.sasrec import SASRec
from trainer.data.dataset import Dataset
from trainer.data.synthetic import write_synthetic

WORLD = replace(datasets.SMOKE, num_rows=4000, num_items=150, churn=0.3, branching=(4, 2, 2))
CODES = OPMQ(num_levels=2, num_codes=8, num_epochs=1)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_synthetic(WORLD, folder / "data")
    source = datasets.with_tokens(
        datasets.synthetic(folder / "data", WORLD), "tokens", tokenizer=CODES
    )
    source = of_behaviour(source)
    quick = replace(source.tokens, sasrec=SASRec(num_epochs=1, dim=16))
    row = StoreRow(source=replace(source, tokens=quick))
    found = row.experiment(tower(source, 2, group_dim=4, ffn_dim=8))
    prepare(found, Console(file=io.StringIO()))
    return found


def test_every_item_has_codes_and_those_without_clicks_share_them(experiment):
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    train = dataset.split(experiment.data.split).train
    columns = dataset.read(train, ["item_id", "click"])
    clicked = np.unique(columns["item_id"][columns["click"] > 0])
    table = EmbeddingTable.load(experiment.tokenizer.embeddings)
    assert sorted(table.item_ids) == sorted(dataset.item_ids)
    cold = ~np.isin(table.item_ids, clicked)
    assert 0 < cold.sum() < len(cold)
    np.testing.assert_allclose(
        table.embeddings[cold], np.tile(table.embeddings[~cold].mean(0), (cold.sum(), 1)), atol=1e-5
    )
    artifact = TokenArtifact.load(experiment.tokenizer.folder)
    codes = dict(zip(artifact.item_ids.tolist(), artifact.codes.tolist(), strict=True))
    assert len({tuple(codes[item]) for item in table.item_ids[cold].tolist()}) == 1
    assert len({tuple(codes[item]) for item in table.item_ids[~cold].tolist()}) > 1
    assert artifact.manifest["embeddings"]["log_rows"] == train.stop


def test_other_settings_are_refused(experiment):
    other = replace(experiment.tokenizer, sasrec=SASRec(num_epochs=2, dim=16))
    with pytest.raises(ValueError, match="tokens were made with sasrec"):
        prepare(replace(experiment, tokenizer=other), Console(file=io.StringIO()))


def test_settings_without_effect_are_refused(experiment):
    with pytest.raises(ValueError, match="embedding_column is 'x', but embeddings come from"):
        replace(experiment.tokenizer, embedding_column="x")
    with pytest.raises(ValueError, match="expected 'leave_out' without sasrec_log"):
        EmbedArgs(
            items=experiment.tokenizer.folder,
            out=experiment.tokenizer.folder,
            sasrec_missing="mean",
        )
