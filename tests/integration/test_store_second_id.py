"""STORE on a log of which two IDs are tokenized: the item's, and the query's by the commands."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import datasets, store
from launch import data, tokenize
from launch.ranks import run_on_ranks
from tokenization.pipeline import fit_tokens
from trainer.data.code_columns import code_features, coded_ids
from trainer.loop import train


@pytest.fixture(scope="module")
def coded(workspace, tmp_path_factory):
    """The smoke log with four codes of each query, and its experiment."""
    folder = tmp_path_factory.mktemp("coded")
    num = datasets.SMOKE.num_queries
    vectors = np.random.default_rng(0).normal(size=(num, 16)).astype(np.float32)
    queries = pa.table({"item_id": np.arange(num), "embedding": list(vectors)})
    pq.write_table(queries, folder / "queries.parquet")
    sizes = ["--tokenizer.num-levels", "4", "--tokenizer.num-codes", "16"]
    words = ["--embeddings", str(folder / "queries.parquet"), "--out", str(folder / "tokens")]
    tokenize.main([*words, "--tokenizer", "opq", *sizes, "--mem.num-merges", "0"])
    words = ["--column", "query_id", "--tokens", str(folder / "tokens")]
    log = str(workspace / "data" / "smoke")
    data.main(["codes", "--log", log, *words, "--folder", str(folder / "log")])
    own = datasets.smoke()
    added = code_features("query_id", num_levels=4, num_codes=16, entity="request")
    kept = tuple(one for one in own.data.schema.features if one.name != "query_id")
    schema = replace(own.data.schema, features=(*kept, *added))
    source = replace(
        own, data=replace(own.data, folder=folder / "log", schema=schema, shuffle_rows=2048)
    )
    made = store.experiment(source)
    tokens = replace(made.tokenizer, folder=folder / "item_tokens")
    items = pq.read_table(folder / "log" / "items.parquet", columns=["item_id", "embedding"])
    fit_tokens(
        items["item_id"].to_numpy(),
        np.stack(items["embedding"].to_numpy()),
        tokenizer=tokens.tokenizer,
        mem=tokens.mem,
    ).save(tokens.folder)
    short = replace(made.train, max_steps=4, batch_size=256, log_every=2, precision="fp32")
    return replace(made, tokenizer=tokens, train=short), folder


def test_both_are_semantic_ids_and_the_query_is_no_static_feature(coded):
    experiment, _ = coded
    tower = experiment.model.tower
    assert tower.semantic_ids == (("candidate",), coded_ids(experiment.data.schema)["query_id"])
    assert not [name for names in tower.groups for name in names if "query_id" in name]


def test_it_trains_and_is_evaluated(coded):
    experiment, folder = coded
    run_on_ranks(train, 1, experiment, folder / "run", log_folder=folder / "run" / "log")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    losses = [one["train/discriminative"] for one in lines if "train/discriminative" in one]
    assert losses
    assert np.isfinite(losses).all()
    assert any(key.startswith("valid/") for one in lines for key in one)
