"""What the one rank does in the tests of retrieval; spawned processes import it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.schema import RowRange
from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.retrieval_run import Retrieval, TrainedRetriever


def train_smoke(experiment: Experiment, folder: Path) -> None:
    """Train a run."""
    train(experiment, folder)
    stop_ranks()


def answer(experiment: Experiment, folder: Path, users: Path, index: Path | None = None) -> None:
    """Answer requests with and without cross features, and measure some rows."""
    model = TrainedRetriever(experiment, folder, Retrieval(width=20, top=5, index=index))
    plain = folder / "items.parquet"
    model.for_requests(users, plain)
    first = pq.read_table(plain).slice(0, 1)
    schema = model.trainer.dataset.schema
    pairs = {"request": first["request"], "item_id": first["item_id"]}
    for at in model.network.types.cross_dense:
        pairs[schema.dense_features[at].name] = pa.array([3.0])
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    model.for_requests(users, folder / "items_cross.parquet", folder / "pairs.parquet")
    rows = model.trainer.splits.test
    found = model.measure(RowRange(rows.start, min(rows.start + 300, rows.stop)))
    (folder / "measured.json").write_text(json.dumps(found))
    stop_ranks()
