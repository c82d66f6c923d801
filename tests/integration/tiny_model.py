"""A small ranking model with every kind of table, and random batches for it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.initialize import initialize, parameters_on_meta
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModel, RankingModelConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.tower import TowerConfig
from trainer.modules.hybrid_tokens import GEN_TOKEN, MEM_TOKEN, HybridTokensConfig
from trainer.modules.next_token_config import ContextRoles, NextTokenConfig
from trainer.optim import OptimConfig

NUM_DENSE, NUM_TASKS, NUM_HISTORIES, DIM = 3, 2, 2, 16
NUM_LEVELS, NUM_CODES, NUM_MERGES, NUM_ITEMS = 3, 8, 31, 40
ROWS = 53  # no number of ranks divides it
SEED = 3
OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
ROLES = ContextRoles(
    query_features=("sgd_a", "adagrad_b"),
    user_features=("rowwise_adagrad_a",),
    query_dense=(1,),
    user_dense=(0,),
    tasks=("a", "b"),
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of spreading the model, trained for `num_steps` on batches that the seed decides."""

    name: str
    pooled_type: str = "table_wise"
    item_type: str = "table_wise"
    gen_optimizer: str = "rowwise_adagrad"
    mem_optimizer: str = "adagrad"
    types: tuple[str, ...] = ()  # of each pooled table, in place of one for all
    mean: tuple[str, ...] = ()  # optimizers whose pooled table takes means
    fsdp: bool = False
    tower: TowerConfig | None = None  # None for a RankMixer under FSDP, else a DLRM
    drawn: bool = False  # the network is built without memory and drawn on its ranks
    compiled: bool = False
    checkpointed: bool = False
    parts: int = 1  # in which a rank's batch goes through the network
    next_token: NextTokenConfig | None = None
    negatives: int = 0  # rows at the start of each step that have no positive label
    num_steps: int = 20
    batch_size: int = 24  # of all ranks
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            dense_lr=1e-3,
            weight_decay=0.01,
            sparse_lr=0.05,
            sparse_eps=1e-6,
            warmup_steps=4,
            decay="linear",
            max_dense_norm=0.2,
        )
    )

    def tables(self) -> list[TableSpec]:
        """A pooled table of two features for each optimizer, and the two token tables."""
        pooled = [
            TableSpec(
                name=f"pooled_{optimizer}",
                rows=ROWS,
                dim=DIM,
                features=(f"{optimizer}_a", f"{optimizer}_b"),
                role="side",
                pooling="mean" if optimizer in self.mean else "sum",
                optimizer=optimizer,
                sharding_types=(sharding_type,),
            )
            for optimizer, sharding_type in zip(
                OPTIMIZERS, self.types or (self.pooled_type,) * len(OPTIMIZERS), strict=True
            )
        ]
        items = [
            TableSpec(
                name=name,
                rows=rows,
                dim=DIM,
                features=(name,),
                role=name,
                pooling="none",
                optimizer=optimizer,
                sharding_types=(self.item_type,),
            )
            for name, rows, optimizer in (
                (GEN_TOKEN, NUM_LEVELS * NUM_CODES, self.gen_optimizer),
                (MEM_TOKEN, NUM_MERGES, self.mem_optimizer),
            )
        ]
        return pooled + items

    def config(self) -> RankingModelConfig:
        """Hybrid tokens and the tower."""
        tower = self.tower or (
            RankMixerConfig(num_tokens=4, dim=16, num_layers=2, expansion=2.0)
            if self.fsdp
            else DLRMConfig(hidden_dims=(16, 8))
        )
        item = HybridTokensConfig(
            num_levels=NUM_LEVELS, table_dim=DIM, item_dim=8, hidden_dims=(12,)
        )
        return RankingModelConfig(
            item=item, tower=tower, dense_bins=4, dense_dim=8, next_token=self.next_token
        )

    def model(self, device: str) -> RankingModel:
        """The model with equal network weights on every rank; tables on `device`.

        A network that is drawn later has no weights yet, unless its tables are real.
        """
        with parameters_on_meta() if self.drawn else nullcontext():
            model = RankingModel(
                self.config(),
                tables=self.tables(),
                num_dense=NUM_DENSE,
                num_tasks=NUM_TASKS,
                num_histories=NUM_HISTORIES,
                roles=ROLES,
                sparse_device=torch.device(device),
            )
        if self.drawn:
            if device != "meta":
                model.sparse.to_empty(device=device)
                initialize(model.network, seed=SEED, device=torch.device(device))
            return model
        torch.manual_seed(11)
        for module in model.network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        with torch.no_grad():
            for weight in model.network.parameters():
                weight *= 1.5  # gradients that reach the tables are larger
        return model


def initial_table(name: str, rows: int) -> torch.Tensor:
    """Weights (rows, DIM) that depend on the table's name alone."""
    seed = sum(map(ord, name))
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)) * 0.3


def batches_of_ranks(case: Case, world_size: int) -> list[list[Batch]]:
    """[step][rank] -> batch; the rows of a step do not depend on the number of ranks."""
    rng = np.random.default_rng(5)
    bags = [rng.integers(0, NUM_MERGES, rng.integers(0, 4)) for _ in range(NUM_ITEMS)]
    codes = rng.integers(0, NUM_CODES, (NUM_ITEMS, NUM_LEVELS))
    gen = codes + NUM_CODES * np.arange(NUM_LEVELS)
    part = case.batch_size // world_size
    steps = []
    for _ in range(case.num_steps):
        rows = [_random_row(rng) for _ in range(case.batch_size)]
        for row in rows[: case.negatives]:
            row["labels"][:] = 0
        steps.append(
            [
                _batch(rows[rank * part : (rank + 1) * part], gen, bags, rank * part)
                for rank in range(world_size)
            ]
        )
    return steps


def _random_row(rng: np.random.Generator) -> dict:
    length = rng.integers(0, 6)
    return {
        "dense": rng.random(NUM_DENSE),
        "labels": rng.integers(0, 2, NUM_TASKS),
        "candidate": int(rng.integers(NUM_ITEMS)),
        "history": rng.integers(0, NUM_ITEMS, length).tolist(),
        "kinds": sorted(rng.integers(0, NUM_HISTORIES, length).tolist()),
        "pooled": {
            f"{optimizer}_{feature}": rng.integers(0, ROWS, rng.integers(0, 4)).tolist()
            for optimizer in OPTIMIZERS
            for feature in "ab"
        },
    }


def _batch(rows: list[dict], gen: np.ndarray, bags: list[np.ndarray], first_row: int) -> Batch:
    distinct = sorted({item for row in rows for item in [row["candidate"], *row["history"]]})
    place = {item: at for at, item in enumerate(distinct)}
    history = [[place[item] for item in row["history"]] for row in rows]
    return Batch(
        dense_BF=torch.tensor(np.array([row["dense"] for row in rows]), dtype=torch.float32),
        pooled=_keyed({key: [row["pooled"][key] for row in rows] for key in rows[0]["pooled"]}),
        items=_keyed(
            {
                GEN_TOKEN: [gen[item].tolist() for item in distinct],
                MEM_TOKEN: [bags[item].tolist() for item in distinct],
            }
        ),
        candidate_B=torch.tensor([place[row["candidate"]] for row in rows]),
        history_T=torch.tensor([at for row in history for at in row], dtype=torch.int64),
        history_kind_T=torch.tensor([kind for row in rows for kind in row["kinds"]]).long(),
        history_offsets=torch.tensor([0, *np.cumsum([len(row) for row in history])]),
        labels_BN=torch.tensor(np.array([row["labels"] for row in rows]), dtype=torch.float32),
        row_B=torch.arange(first_row, first_row + len(rows)),
    )


def _keyed(bags: dict[str, list[list[int]]]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor.from_lengths_sync(
        keys=list(bags),
        values=torch.tensor([i for rows in bags.values() for row in rows for i in row]).long(),
        lengths=torch.tensor([len(row) for rows in bags.values() for row in rows]),
    )


def joined(batches: list[Batch]) -> Batch:
    """The batches of all ranks as one; an item may stand twice, once for each rank."""
    place, offset = [], 0
    for batch in batches:
        place.append(offset)
        offset += batch.items.stride()
    counts = torch.cat([batch.history_offsets.diff() for batch in batches])
    return Batch(
        dense_BF=torch.cat([batch.dense_BF for batch in batches]),
        pooled=_keyed(_lists([batch.pooled for batch in batches])),
        items=_keyed(_lists([batch.items for batch in batches])),
        candidate_B=torch.cat([b.candidate_B + p for b, p in zip(batches, place, strict=True)]),
        history_T=torch.cat([b.history_T + p for b, p in zip(batches, place, strict=True)]),
        history_kind_T=torch.cat([batch.history_kind_T for batch in batches]),
        history_offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        labels_BN=torch.cat([batch.labels_BN for batch in batches]),
        row_B=torch.cat([batch.row_B for batch in batches]),
    )


def _lists(jagged: list[KeyedJaggedTensor]) -> dict[str, list[list[int]]]:
    return {
        key: [
            bag.tolist()
            for one in jagged
            for bag in one[key].values().split(one[key].lengths().tolist())
        ]
        for key in jagged[0].keys()  # noqa: SIM118 (a KJT is no dict)
    }
