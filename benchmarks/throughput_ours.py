"""Our side: the project's reader, tables, sharding, pipeline and optimizers around one tower.

The tables of the categorical features and of the history form one EmbeddingBagCollection; the
network is the project's DeepFM or DCN-v2 tower with a head. Nothing else of the ranking model takes
part.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from throughput_worker import serve
from throughput_workload import (
    BATCH_SIZE,
    CROSS_LAYERS,
    DIM,
    HIDDEN_DIMS,
    HISTORY,
    ITEM,
    Rows,
    table_rows,
)
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.data.dataset import Dataset
from trainer.data.item_features import item_id_features
from trainer.data.ragged import Ragged
from trainer.data.reader import InteractionReader
from trainer.data.schema import Bag, Categorical, DatasetSchema, RowRange
from trainer.data.writer import DatasetWriter, ragged_column
from trainer.distributed import Ranks, start_ranks
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.deepfm import DeepFMConfig
from trainer.models.ranking_model import Outputs, RankingModel
from trainer.models.sparse_arch import SparseArch
from trainer.models.tower import TowerConfig
from trainer.optim import OptimConfig
from trainer.parallelize import ShardingConfig, parallelize
from trainer.pipeline import RankingPipeline

TOWERS: dict[str, TowerConfig] = {
    "deepfm": DeepFMConfig(hidden_dims=HIDDEN_DIMS),
    "dcn_v2": DCNv2Config(num_layers=CROSS_LAYERS, hidden_dims=HIDDEN_DIMS),
}
SHUFFLE_ROWS = 65_536
MEMORY_BATCHES = 8
NUM_STEPS = 1_000_000


def schema(num_items: int) -> DatasetSchema:
    """Fifteen categorical features and the history as a bag, all pooled."""
    return DatasetSchema(
        name="throughput",
        features=(
            *(
                Categorical(name=name, entity="request", cardinality=rows)
                for name, rows in table_rows(num_items).items()
            ),
            Bag(name=HISTORY, entity="user", cardinality=num_items),
        ),
        labels=("label",),
        query_group="user_id",
        created_at=None,
    )


def tables(num_items: int) -> tuple[TableSpec, ...]:
    """One table a feature; the history is pooled from the item's."""
    return tuple(
        TableSpec(
            name=name,
            rows=rows,
            dim=DIM,
            features=(ITEM, HISTORY) if name == ITEM else (name,),
            role="item_id" if name == ITEM else "side",
            pooling="mean",
        )
        for name, rows in table_rows(num_items).items()
    )


def write_log(folder: Path, rows: Rows, num_items: int) -> None:
    """Write the rows as a data folder."""
    with DatasetWriter(folder, schema=schema(num_items), source={"made": "benchmark"}) as out:
        out.write_items(pa.table({ITEM: np.arange(num_items)}))
        offsets = np.arange(len(rows) + 1) * rows.history.shape[1]
        out.write(
            pa.table(
                {
                    **{name: ids.astype(np.int32) for name, ids in rows.ids.items()},
                    HISTORY: ragged_column(Ragged(rows.history.ravel(), offsets)),
                    "label": rows.label,
                    "timestamp": np.arange(len(rows)),
                }
            )
        )
        out.finish()


class PooledNetwork(nn.Module):
    """Everything dense: the tower and one head."""

    def __init__(self, features: list[str], tower: TowerConfig) -> None:
        super().__init__()
        self.features = features
        self.tower = tower.build(dict.fromkeys(features, DIM))
        self.heads = nn.ModuleList([nn.Linear(self.tower.out_dim, 1)])

    def forward(self, pooled: KeyedTensor) -> Tensor:
        """Logits (B, 1)."""
        by_feature = pooled.to_dict()
        x_BF = torch.cat([by_feature[feature] for feature in self.features], dim=1)
        return self.heads[0](self.tower(x_BF))


class PooledModel(RankingModel):
    """The ranking model without item encoder, attention and dense features."""

    def __init__(self, num_items: int, tower: TowerConfig) -> None:
        nn.Module.__init__(self)
        specs = tables(num_items)
        self.sparse = SparseArch(specs, torch.device("meta"))
        features = [feature for spec in specs for feature in spec.features]
        self.network = PooledNetwork(features, tower)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss and predictions."""
        logits_BN = self.network(self.sparse.pooled(batch.pooled))
        loss = nn.functional.binary_cross_entropy_with_logits(logits_BN, batch.labels_BN)
        return loss, Outputs(logits_BN.detach(), batch.labels_BN, batch.row_B, losses={})


class OurTrainer:
    """One rank's model, pipeline and data."""

    def __init__(self, num_items: int, folder: Path, ranks: Ranks, tower: TowerConfig) -> None:
        self.ranks = ranks
        self.dataset = Dataset.open(folder, schema(num_items))
        self.item_features = item_id_features(self.dataset, cardinality=num_items, hashed=False)
        torch.manual_seed(0)
        parallel = parallelize(
            PooledModel(num_items, tower),
            tables=tables(num_items),
            ranks=ranks,
            optim=OptimConfig(),
            sharding=ShardingConfig(),
            batch_size=BATCH_SIZE // ranks.world_size,
            num_steps=NUM_STEPS,
        )
        self.pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
        parallel.model.train()
        with closing(iter(self.reader())) as batches:
            self.ready = list(itertools.islice(batches, MEMORY_BATCHES))

    def reader(self) -> InteractionReader:
        """A fresh reader over the whole log."""
        return InteractionReader(
            self.dataset,
            rows=RowRange(0, self.dataset.num_rows),
            item_features=self.item_features,
            batch_size=BATCH_SIZE // self.ranks.world_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            shuffle_rows=SHUFFLE_ROWS,
            seed=0,
            num_epochs=None,
            drop_last=True,
        )

    def train(self, batches: Iterator[Batch], steps: int) -> None:
        """As trainer.loop does it: fill the pipeline, step, let go of the iterator."""
        self.pipeline.read_from(itertools.islice(batches, steps))
        for _ in range(steps):
            self.pipeline.step()
        self.pipeline.detach()

    def from_loader(self, steps: int) -> None:
        """Train on batches read from parquet, the start of the reader included."""
        with closing(iter(self.reader())) as batches:
            self.train(batches, steps)

    def modes(self) -> dict[str, Callable[[int], None]]:
        """What `serve` calls."""
        return {
            "memory": lambda steps: self.train(itertools.cycle(self.ready), steps),
            "loader": self.from_loader,
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tower", choices=TOWERS, default="deepfm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ranks = start_ranks()
    trainer = OurTrainer(arguments.items, arguments.folder, ranks, TOWERS[arguments.tower])
    serve(trainer.modes())


if __name__ == "__main__":
    main()
