import io
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from configs import datasets, rankmixer_gen, trm_rankmixer
from launch.prepare import prepare
from launch.tokenize import parse
from launch.tokenize_options import command
from tokenization.alignment import Alignment
from tokenization.artifact import TokenArtifact
from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.embedding_table import EmbeddingTable
from tokenization.mem_tokens import MemTokens
from tokenization.ngrams import KGrams, PrefixNGrams
from tokenization.opmq import OPMQ
from tokenization.opq import OPQ
from tokenization.rq_vae import RQVAE
from trainer.data.dataset import Dataset
from trainer.data.synthetic import write_synthetic
from trainer.run_inputs import item_features, load_tokens

WORLD = replace(datasets.SMOKE, num_rows=6000, num_items=150, churn=0.1, branching=(4, 2, 2))
ALIGNMENT = Alignment(hidden=8, num_epochs=1, min_count=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_synthetic(WORLD, folder / "data")
    return folder / "data"


@pytest.fixture
def source(written, tmp_path):
    """The log, with a folder of its own for what is made of it."""
    shutil.copytree(written, tmp_path / "data")
    world = datasets.synthetic(tmp_path / "data", WORLD)
    return datasets.with_tokens(world, "tokens", mem=MemTokens(num_merges=40))


def prepared(experiment):
    shown = io.StringIO()
    prepare(experiment, Console(file=shown, width=200))
    return shown.getvalue()


@pytest.mark.parametrize(
    ("tokenizer", "mem", "collisions"),
    [
        (RQVAE(num_levels=2, num_codes=8, num_epochs=1), PrefixNGrams(num_merges=40), "keep"),
        (BalancedRQKMeans(num_levels=2, num_codes=8), KGrams(num_merges=40), "next_nearest"),
        (OPQ(num_levels=2, num_codes=32), MemTokens(num_merges=40, cover="tree"), "extra_code"),
        (OPMQ(num_levels=2, num_codes=8, num_epochs=1), MemTokens(num_merges=40), "keep"),
    ],
)
def test_tokens_of_any_kind_are_made_and_read_by_the_model(source, tokenizer, mem, collisions):
    experiment = trm_rankmixer.experiment(
        datasets.with_tokens(source, "other", tokenizer=tokenizer, mem=mem, collisions=collisions)
    )
    shown = prepared(experiment)
    artifact = TokenArtifact.load(experiment.tokenizer.folder)
    assert artifact.manifest["tokenizer"]["kind"] == tokenizer.kind
    assert artifact.manifest["collisions"] == collisions
    assert artifact.num_levels == experiment.model.item.num_levels
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    features = item_features(experiment, dataset, load_tokens(experiment)).features
    for key, table in experiment.item_tables.items():
        assert features[key].values.min() >= 0
        assert features[key].values.max() < table.rows
    # What is shown does the same on the command line.
    words = next(line for line in shown.splitlines() if "farewell tokenize" in line)
    again = parse(shlex.split(words)[3:])
    assert (again.tokenizer, again.mem, again.collisions) == (tokenizer, mem, collisions)
    assert command(again) == words.removeprefix("$ ")
    assert "tokenize" not in prepared(experiment)  # nothing is made twice


def test_tokens_without_mem_tokens(source):
    experiment = rankmixer_gen.experiment(
        datasets.with_tokens(source, "gen", mem=MemTokens(num_merges=0))
    )
    prepared(experiment)
    artifact = load_tokens(experiment)
    assert (artifact.num_merges, artifact.mem_values.size) == (0, 0)
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    assert set(item_features(experiment, dataset, artifact).features) == {"gen_token"}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer", {"tokenizer": OPQ(num_levels=4, num_codes=32)}),
        ("mem", {"mem": MemTokens(num_merges=40, cover="tree")}),
        ("mem", {"mem": KGrams(num_merges=40)}),
        ("collisions", {"collisions": "next_nearest"}),
        ("alignment", {"alignment": ALIGNMENT}),
        ("alignment", {"alignment": ALIGNMENT, "feature_columns": ("category_1",)}),
    ],
)
def test_tokens_made_with_other_settings_are_refused(source, name, changes):
    prepared(trm_rankmixer.experiment(source))
    other = replace(source, tokens=replace(source.tokens, **changes))
    with pytest.raises(ValueError, match=rf"tokens were made with {name} .*name another folder"):
        prepared(trm_rankmixer.experiment(other))


def without_later_clicks(source):
    """The same log, but after the training rows everyone clicks everything."""
    folder = source.data.folder / "interactions"
    dataset = Dataset.open(source.data.folder, source.data.schema)
    train = dataset.split(source.data.split).train.stop
    start = 0
    for part in sorted(folder.glob("*.parquet")):
        table = pq.read_table(part)
        click = table["click"].to_numpy().copy()
        click[max(0, train - start) :] = 1
        place = table.schema.get_field_index("click")
        column = pa.array(click, type=table.schema.field("click").type)
        table = table.set_column(place, table.schema.field("click"), column)
        pq.write_table(table, part, row_group_size=65_536)
        start += table.num_rows
    return train


def test_alignment_knows_the_training_rows_alone(source):
    aligned = datasets.with_tokens(
        source, "aligned", alignment=ALIGNMENT, feature_columns=("category_1",)
    )
    experiment = trm_rankmixer.experiment(aligned)
    shown = prepared(experiment)
    raw = EmbeddingTable.load(aligned.tokens.embeddings)
    first = EmbeddingTable.load(aligned.tokens.aligned_embeddings)
    train = without_later_clicks(source)
    assert f"--align-rows {train}" in shown
    assert first.made["log_rows"] == train
    assert first.embeddings.shape[1] > raw.embeddings.shape[1]  # the column's encoding came in
    manifest = TokenArtifact.load(aligned.tokens.folder).manifest
    assert manifest["embeddings"]["alignment"]["hidden"] == 8

    aligned.tokens.aligned_embeddings.unlink()
    shutil.rmtree(aligned.tokens.folder)
    prepared(experiment)
    second = EmbeddingTable.load(aligned.tokens.aligned_embeddings)
    np.testing.assert_array_equal(first.embeddings, second.embeddings)


@pytest.mark.parametrize("of", ["embeddings", "tokens"])
def test_tokens_that_know_rows_of_the_evaluation_are_refused(source, of):
    aligned = datasets.with_tokens(source, "aligned", alignment=ALIGNMENT)
    prepared(trm_rankmixer.experiment(aligned))
    path = aligned.tokens.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    known = manifest["embeddings"]["log_rows"]
    (manifest["embeddings"] if of == "embeddings" else manifest)["log_rows"] = known
    path.write_text(json.dumps(manifest))
    load_tokens(trm_rankmixer.experiment(aligned))
    (manifest["embeddings"] if of == "embeddings" else manifest)["log_rows"] = known + 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="evaluated on rows that its tokens know"):
        load_tokens(trm_rankmixer.experiment(aligned))


def test_embeddings_that_were_aligned_before_are_taken_as_they_are(source):
    aligned = datasets.with_tokens(source, "aligned", alignment=ALIGNMENT)
    prepared(trm_rankmixer.experiment(aligned))
    own = replace(
        source, tokens=replace(source.tokens, embeddings=aligned.tokens.aligned_embeddings)
    )
    prepared(trm_rankmixer.experiment(own))
    assert load_tokens(trm_rankmixer.experiment(own)).manifest["embeddings"]["alignment"]
