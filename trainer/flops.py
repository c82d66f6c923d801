"""Training FLOPs of a network, counted by torch on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.ranking_model import RankingModelConfig, RankingNetwork
from trainer.modules.next_token import ContextRoles


def training_flops(
    config: RankingModelConfig,
    *,
    tables: Sequence[TableSpec],
    num_tasks: int,
    num_histories: int,
    batch: Batch,
    roles: ContextRoles | None = None,
) -> int:
    """FLOPs of one forward and backward pass over `batch` (a multiply-add counts as two).

    Counted: matrix products of the network. Not counted: embedding look-ups and element-wise
    work, which do no matrix product. Nothing is computed: tensors have shapes only.

    Args:
        config: of the network.
        tables: whose dims the embeddings have.
        num_tasks: number of labels.
        num_histories: histories of the schema.
        batch: on the CPU; its histories, distinct items and (for the generative objective, which
            positives alone have) its labels decide the count.
        roles: as in the network.
    """
    meta = torch.device("meta")
    dims = {feature: table.dim for table in tables for feature in table.features}
    with meta:
        network = RankingNetwork(
            config,
            tables=tables,
            num_dense=batch.dense_BF.shape[1],
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
        )
        pooled = KeyedTensor(
            keys=network.pooled_features,
            length_per_key=[dims[feature] for feature in network.pooled_features],
            values=torch.empty(
                batch.batch_size,
                sum(dims[feature] for feature in network.pooled_features),
                requires_grad=True,
            ),
        )
    items = {
        key: JaggedTensor(
            values=torch.empty(
                jagged.values().shape[0], dims[key], device=meta, requires_grad=True
            ),
            lengths=jagged.lengths().to(meta),
        )
        for key, jagged in batch.items.to_dict().items()
    }
    plain = {
        field.name: getattr(batch, field.name).to(meta)
        for field in fields(batch)
        if field.name not in ("pooled", "items")
    }
    shapes = Batch(pooled=batch.pooled.to(meta), items=batch.items.to(meta), **plain)
    positive_P = network.next_token and network.next_token.positives(batch.labels_BN).to(meta)
    with FlopCounterMode(display=False) as counter:
        found = network(shapes, pooled, items, positive_P)
        (found.logits_BN.sum() + sum(found.losses.values())).backward()
    return counter.get_total_flops()


def next_token_flops(
    config: RankingModelConfig,
    *,
    tables: Sequence[TableSpec],
    num_tasks: int,
    num_histories: int,
    batch: Batch,
    roles: ContextRoles | None = None,
) -> int:
    """What of `training_flops` the generative objective costs: the count with it less without."""
    with_it, without = (
        training_flops(
            one,
            tables=tables,
            num_tasks=num_tasks,
            num_histories=num_histories,
            batch=batch,
            roles=roles,
        )
        for one in (config, replace(config, next_token=None))
    )
    return with_it - without
