"""Our side of the CTR zoo: reader, tables, sharding, pipeline and optimizers around each tower."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from ctr_zoo_workload import (
    ATTENTION_HEADS,
    ATTENTION_LAYERS,
    BATCH_SIZE,
    CROSS_LAYERS,
    DIM,
    HIDDEN_DIMS,
    LEARNING_RATE,
    MODELS,
    Steps,
    ZooData,
    serve,
)
from numpy.typing import NDArray
from throughput_ours import PooledModel, PooledNetwork
from torch import nn

from sharding.tables import TableSpec
from trainer.data.dataset import Dataset
from trainer.data.item_features import item_id_features
from trainer.data.reader import InteractionReader
from trainer.data.schema import Categorical, DatasetSchema, RowRange
from trainer.data.writer import DatasetWriter
from trainer.distributed import Ranks, start_ranks
from trainer.models.autoint import AutoIntConfig
from trainer.models.dcn import DCNConfig
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.deepfm import DeepFMConfig
from trainer.models.sparse_arch import SparseArch
from trainer.models.tower import TowerConfig
from trainer.models.wide_deep import WideDeepConfig
from trainer.optim import OptimConfig
from trainer.parallelize import ParallelModel, ShardingConfig, parallelize
from trainer.pipeline import RankingPipeline

TOWERS: dict[str, TowerConfig] = {
    "wide_deep": WideDeepConfig(hidden_dims=HIDDEN_DIMS),
    "deepfm": DeepFMConfig(hidden_dims=HIDDEN_DIMS),
    "dcn": DCNConfig(num_layers=CROSS_LAYERS, hidden_dims=HIDDEN_DIMS),
    "dcn_v2": DCNv2Config(num_layers=CROSS_LAYERS, hidden_dims=HIDDEN_DIMS),
    "autoint": AutoIntConfig(
        num_layers=ATTENTION_LAYERS,
        num_heads=ATTENTION_HEADS,
        head_dim=DIM // ATTENTION_HEADS,
        hidden_dims=HIDDEN_DIMS,
    ),
}
ITEM = "item_id"
SHUFFLE_ROWS = 65_536
OPTIM = OptimConfig(dense_lr=LEARNING_RATE)


def schema(data: ZooData) -> DatasetSchema:
    """Every field pooled, the item's too."""
    return DatasetSchema(
        name="ctr_zoo",
        features=tuple(
            Categorical(name=field, entity="request", cardinality=size)
            for field, size in data.sizes.items()
        ),
        labels=("label",),
        query_group="user_id",
        created_at=None,
    )


def write_log(folder: Path, data: ZooData) -> None:
    """Write the rows as a data folder."""
    with DatasetWriter(folder, schema=schema(data), source={"made": "benchmark"}) as out:
        out.write_items(pa.table({ITEM: np.arange(data.sizes[ITEM])}))
        out.write(
            pa.table(
                {
                    **{field: ids.astype(np.int32) for field, ids in data.ids.items()},
                    "label": data.label,
                    "timestamp": np.arange(len(data.label)),
                }
            )
        )
        out.finish()


class ZooModel(PooledModel):
    """A tower over pooled tables, one a field."""

    def __init__(self, specs: tuple[TableSpec, ...], tower: TowerConfig) -> None:
        nn.Module.__init__(self)
        self.sparse = SparseArch(specs, torch.device("meta"))
        self.network = PooledNetwork([spec.name for spec in specs], tower)


class Ours:
    """One model on one rank."""

    def __init__(self, name: str, data: ZooData, log: Path, ranks: Ranks) -> None:
        self.tower = TOWERS[name]
        self.data = data
        self.log = log
        self.ranks = ranks
        self.dataset = Dataset.open(log, schema(data))
        self.item_features = item_id_features(
            self.dataset, cardinality=data.sizes[ITEM], hashed=False
        )
        self.specs = tuple(
            TableSpec(name=field, rows=size, dim=DIM, features=(field,), role="side")
            for field, size in data.sizes.items()
        )
        self.parallel: ParallelModel | None = None
        self.seed = 0

    def build(self, seed: int) -> None:
        """A fresh model."""
        self.seed = seed
        torch.manual_seed(seed)
        self.parallel = parallelize(
            ZooModel(self.specs, self.tower),
            tables=self.specs,
            ranks=self.ranks,
            optim=OPTIM,
            sharding=ShardingConfig(),
            batch_size=BATCH_SIZE,
            num_steps=self.data.num_train // BATCH_SIZE,
        )

    def reader(self, rows: RowRange, shuffle_rows: int | None) -> InteractionReader:
        """One pass over some rows."""
        return InteractionReader(
            self.dataset,
            rows=rows,
            item_features=self.item_features,
            batch_size=BATCH_SIZE,
            rank=0,
            world_size=1,
            shuffle_rows=shuffle_rows,
            seed=self.seed,
            num_epochs=1,
            drop_last=False,
        )

    def train(self, rows: int) -> None:
        """As trainer.loop does it, the start of the reader included."""
        assert self.parallel is not None
        pipeline = RankingPipeline(self.parallel, self.ranks, self.log / "non_finite")
        self.parallel.model.train()
        reader = self.reader(RowRange(0, min(rows, self.data.num_train)), SHUFFLE_ROWS)
        with closing(iter(reader)) as batches:
            pipeline.read_from(batches)
            for _ in range(len(reader)):
                pipeline.step()
            pipeline.detach()

    def predict(self, rows: int) -> NDArray[np.float64]:
        """Probabilities of the first test rows."""
        assert self.parallel is not None
        start = self.data.num_train
        stop = min(start + rows, self.dataset.num_rows)
        scores = np.zeros(stop - start)
        self.parallel.model.eval()
        reader = self.reader(RowRange(start, stop), None)
        with torch.no_grad(), closing(iter(reader)) as batches:
            for batch in batches:
                _, outputs = self.parallel.model(batch)
                scores[outputs.row_B.numpy() - start] = outputs.logits_BN[:, 0].sigmoid().numpy()
        return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = ZooData.load(arguments.data)
    ours = Ours(arguments.model, data, arguments.log, start_ranks())
    serve(Steps(ours.build, ours.train, ours.predict), arguments.folder)


if __name__ == "__main__":
    main()
