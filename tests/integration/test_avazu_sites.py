"""STORE on a file of Avazu's format, from the file to a report: its items are sites, as codes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import store
from launch import data, embed, tokenize, train
from tests.unit.trainer.data.test_avazu import made_rows, text_of
from tokenization.artifact import TokenArtifact


@pytest.fixture(scope="module")
def experiment():
    return store.avazu()


@pytest.fixture(scope="module")
def folder(experiment, tmp_path_factory):
    """The commands of docs/public_logs.md, one after the other."""
    folder = tmp_path_factory.mktemp("avazu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rng = np.random.default_rng(1)
        rows = [row | {"site_id": f"{rng.integers(0, 40):08x}"} for row in made_rows()]
        # A site that one user saw alone, of whom nothing else is known.
        rows[-1] |= {"site_id": "ffffffff", "device_id": "0000abcd"}
        (folder / "train.csv").write_text(text_of(rows))
        data.main(["avazu", "--source", "train.csv"])
        items, log = "data/avazu/items.parquet", "data/avazu/interactions"
        out = "data/avazu/item_embeddings.parquet"
        quick = ["--sasrec.num-epochs", "1", "--sasrec.dim", "16"]
        words = ["--items", items, "--sasrec-log", log, "--sasrec-missing", "mean", "--out", out]
        embed.main([*words, *quick])
        tokens = str(experiment.tokenizer.folder)
        sizes = ["--tokenizer.num-levels", "3", "--tokenizer.num-codes", "16"]
        words = ["--embeddings", out, "--out", tokens, "--tokenizer", "opmq", *sizes]
        tokenize.main([*words, "--mem.num-merges", "0"])
        short = ["--train.max-steps", "4", "--train.batch-size", "64", "--train.log-every", "2"]
        train.main(["store.avazu", "--folder", "run", *short, "--data.shuffle-rows", "512"])
    return folder


def test_sites_become_three_codes_of_sixteen(experiment, folder):
    tokens = TokenArtifact.load(folder / experiment.tokenizer.folder)
    sites = pq.read_table(folder / "data" / "avazu" / "items.parquet")
    assert sorted(tokens.item_ids.tolist()) == sorted(sites["item_id"].to_pylist())
    assert tokens.codes.shape == (sites.num_rows, 3)
    assert 0 <= tokens.codes.min() <= tokens.codes.max() < 16


def test_store_trains_on_them_and_is_evaluated(experiment, folder):
    lines = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["train/discriminative"] for line in lines if "train/discriminative" in line]
    assert len(losses) >= 2
    assert np.isfinite(losses).all()
    report = json.loads((folder / "run" / "report.json").read_text())
    [row] = report["rows"]
    assert 0 < row["metrics"]["click"]["logloss"] < 2
    # One table of 3 x 16 rows in the place of one row a site.
    assert experiment.item_tables["gen_token"].rows == 48
