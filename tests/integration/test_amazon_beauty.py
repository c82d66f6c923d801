"""Amazon Beauty from its files to a DIG that retrieves, with and without drawn negatives."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs import dig
from launch import data
from tests.integration.beauty_worker import train_and_measure
from tests.integration.rank_processes import run_ranks
from tokenization.embedding_table import EmbeddingTable
from trainer.data.dataset import Dataset
from trainer.ranked_lists import score_lists
from trainer.retrieval_task import RetrievalTask

NUM_ITEMS, NUM_USERS = 300, 80


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Users who walk through items in their order, with some steps left out."""
    folder = tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    items = {
        str(item): {"title": f"item {item}", "categories": [["Beauty", f"c{item // 10}"]]}
        for item in range(1, NUM_ITEMS + 1)
    }
    (folder / "items.json").write_text(json.dumps(items))
    steps = (
        rng.integers(1, 3, (NUM_USERS, 8)).cumsum(axis=1) + rng.integers(0, 280, NUM_USERS)[:, None]
    )
    lines = [" ".join(map(str, [user + 1, *walk])) for user, walk in enumerate(steps)]
    (folder / "sequences.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("negatives", [0, 2])
def test_dig_trains_and_retrieves_for_the_last_reviews(source, tmp_path, negatives):
    log = tmp_path / "log"
    asked = ["--negatives", str(negatives)] if negatives else []
    data.main(["amazon-beauty", "--source", str(source), "--folder", str(log), *asked])
    made = dig.amazon_beauty()
    dataset = Dataset.open(log, made.data.schema)
    texts = np.random.default_rng(1).normal(size=(NUM_ITEMS, 384)).astype(np.float32)
    embeddings = log / "item_embeddings.parquet"
    EmbeddingTable(item_ids=dataset.item_ids, embeddings=texts).save(embeddings)
    experiment = replace(
        made,
        data=replace(made.data, folder=log, shuffle_rows=512),
        model=replace(made.model, item=replace(made.model.item, embeddings=embeddings)),
        train=replace(made.train, batch_size=64, max_steps=6, eval_every=3, precision="fp32"),
    )
    run = tmp_path / "run"
    run_ranks(train_and_measure, 1, experiment, run)
    measured = json.loads((run / "measured.json").read_text())
    assert ("gap" in measured) == bool(negatives)  # one label alone has no AUC
    assert measured["targets"] == NUM_USERS
    # The measurement and the task ask for the same, so the same lists give the same numbers.
    task = RetrievalTask.of_log(dataset, dataset.split(experiment.data.split))
    with np.load(run / "lists.npz") as kept:
        lists = kept["lists"][np.argsort(kept["user"])]
    assert score_lists(lists, task.test, at=(10,))[10].mean() == pytest.approx(
        measured["recall_order"]
    )
