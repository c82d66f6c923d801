"""A small DIG model, its catalogue, and random batches for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.initialize import initialize, parameters_on_meta
from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dig_config import DigModelConfig
from trainer.models.ranking_model import RankingModel
from trainer.modules.learned_tokens import ITEM_ROW, LearnedTokensConfig, StaticField
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.vq_encoder import StaticFeatures

NUM_ITEMS, NUM_USERS, NUM_DENSE, NUM_HISTORIES, SEED = 60, 9, 4, 2, 3
ITEM = LearnedTokensConfig(
    fields=(StaticField(name="year", rows=7), StaticField(name="genres", rows=5, bag=True)),
    text_dim=6,
    text_fields=2,
    embedding_column="embedding",
    dim=16,
    num_layers=1,
    num_heads=2,
    num_levels=3,
    num_codes=8,
    dead_after=3,
)
CONFIG = DigModelConfig(
    item=ITEM,
    tower=DCNMoEConfig(rank=4, dim=8, num_experts=2, expert_dim=6, hidden_dims=(6,)),
    dense_bins=4,
    dense_dim=8,
    u2t_hidden_dim=6,
    track_every=2,
)
ROLES = ContextRoles(
    query_features=("hour",),
    user_features=("user_id",),
    query_dense=(1,),
    user_dense=(0,),
    tasks=("a", "b"),
)


def tables(item: LearnedTokensConfig = ITEM) -> list[TableSpec]:
    """Pooled tables of each type, and the SID embeddings."""
    pooled = [
        TableSpec(
            name=name,
            rows=rows,
            dim=4,
            features=(name,),
            role=role,
            optimizer="sgd",
            sharding_types=("table_wise",),
        )
        for name, rows, role in (
            ("user_id", NUM_USERS, "residual_id"),
            ("hour", 24, "side"),
            ("affinity", 6, "side"),
        )
    ]
    sids = [
        TableSpec(
            name=feature,
            rows=item.table_rows,
            dim=dim,
            features=(feature,),
            role="gen_token",
            pooling="none",
            optimizer="sgd",
            sharding_types=("row_wise",),
        )
        for feature, dim in item.table_dims.items()
    ]
    return pooled + sids


def catalogue(num_items: int = NUM_ITEMS) -> StaticFeatures:
    """Random static features."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 4, num_items)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return StaticFeatures(
        ids={
            "year": (torch.from_numpy(rng.integers(0, 7, num_items)), torch.arange(num_items + 1)),
            "genres": (
                torch.from_numpy(rng.integers(0, 5, offsets[-1])),
                torch.from_numpy(offsets),
            ),
        },
        dense_NF=torch.zeros(num_items, 0),
        text_NE=torch.from_numpy(rng.standard_normal((num_items, 6)).astype("float32")),
    )


def dig_model(device: str = "cpu", config: DigModelConfig = CONFIG) -> RankingModel:
    """The model; with tables on the meta device its network has no weights yet."""
    with parameters_on_meta():
        model = RankingModel(
            config,
            tables=tables(config.item),
            num_dense=NUM_DENSE,
            num_tasks=2,
            num_histories=NUM_HISTORIES,
            roles=ROLES,
            sparse_device=torch.device(device),
        )
    model.network.encoder.take_catalogue(catalogue())
    if device != "meta":
        model.sparse.to_empty(device=device)
        initialize(model.network, seed=SEED, device=torch.device(device))
        for name, weight in model.sparse.named_parameters():
            with torch.no_grad():
                weight.copy_(initial_table(name.split(".")[-2], *weight.shape))
    return model


def variant(**changes: object) -> DigModelConfig:
    """The configuration with other settings."""
    return replace(CONFIG, **changes)


def initial_table(name: str, rows: int, dim: int) -> torch.Tensor:
    """Weights that depend on the table's name alone."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(rows, dim, generator=generator) * 0.3


def batches_of_ranks(num_steps: int, batch_size: int, world_size: int) -> list[list[Batch]]:
    """[step][rank] -> batch; the rows of a step do not depend on the number of ranks."""
    rng = np.random.default_rng(5)
    part = batch_size // world_size
    steps = []
    for step in range(num_steps):
        rows = [_row(rng, step * batch_size + number) for number in range(batch_size)]
        steps.append([_batch(rows[r * part : (r + 1) * part]) for r in range(world_size)])
    return steps


def _row(rng: np.random.Generator, number: int) -> dict:
    length = int(rng.integers(0, 5))
    return {
        "row": number,
        "dense": rng.random(NUM_DENSE),
        "labels": rng.integers(0, 2, 2),
        "candidate": int(rng.integers(NUM_ITEMS)),
        "history": rng.integers(0, NUM_ITEMS, length).tolist(),
        "kinds": sorted(rng.integers(0, NUM_HISTORIES, length).tolist()),
        "pooled": [int(rng.integers(rows)) for rows in (NUM_USERS, 24, 6)],
    }


def _batch(rows: list[dict]) -> Batch:
    distinct = sorted({item for row in rows for item in [row["candidate"], *row["history"]]})
    place = {item: at for at, item in enumerate(distinct)}
    keys = ["user_id", "hour", "affinity"]
    return Batch(
        dense_BF=torch.tensor(np.array([row["dense"] for row in rows]), dtype=torch.float32),
        pooled=KeyedJaggedTensor.from_lengths_sync(
            keys=keys,
            values=torch.tensor([row["pooled"][at] for at in range(3) for row in rows]),
            lengths=torch.ones(3 * len(rows), dtype=torch.int64),
        ),
        items=KeyedJaggedTensor.from_lengths_sync(
            keys=[ITEM_ROW],
            values=torch.tensor(distinct),
            lengths=torch.ones(len(distinct), dtype=torch.int64),
        ),
        candidate_B=torch.tensor([place[row["candidate"]] for row in rows]),
        history_T=torch.tensor([place[i] for row in rows for i in row["history"]]).long(),
        history_kind_T=torch.tensor([kind for row in rows for kind in row["kinds"]]).long(),
        history_offsets=torch.tensor([0, *np.cumsum([len(row["history"]) for row in rows])]),
        labels_BN=torch.tensor(np.array([row["labels"] for row in rows]), dtype=torch.float32),
        row_B=torch.tensor([row["row"] for row in rows]),
    )
