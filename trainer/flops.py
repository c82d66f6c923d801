"""Training FLOPs of a network, counted by torch on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.dig import DigNetwork
from trainer.models.ranking_model import RankingModelConfig
from trainer.modules.next_token_config import ContextRoles
from trainer.modules.request_encoder import Request
from trainer.modules.target_attention import Past


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
        network = config.build_network(
            tables=tables,
            num_dense=batch.dense_BF.shape[1],
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
        )
        if isinstance(network, DigNetwork):
            return _dig_flops(network, batch)
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


def _dig_flops(network: DigNetwork, batch: Batch) -> int:
    """The same of DIG, whose shapes follow from values: counted part by part, on the meta device.

    Looks at the whole catalogue (`track_every`) are apart.
    """
    config, item = network.config, network.config.item
    num_rows, num_items = batch.batch_size, batch.items.stride()
    negatives = config.num_negatives if config.recall_weight else 0
    groups = (2 + negatives if negatives else 1) if config.recall_weight else 0
    longest = int(batch.history_offsets.diff().max())

    def given(*shape: int) -> Tensor:
        return torch.empty(*shape, requires_grad=True)

    x_XFD = given(num_items + num_rows * negatives, len(item.field_names), item.dim)
    user_BE = given(num_rows, network.user_dim)
    num_targets = 1 + groups * item.num_levels
    target_BSD = given(num_rows, num_targets, item.dim)
    with FlopCounterMode(display=False) as counter:
        for block in network.encoder.blocks:
            x_XFD = block(x_XFD)
        e_XD = network.encoder.project(x_XFD).flatten(1)
        of_history = [
            network.request_encoder.history_value,
            network.attention.key,
            network.attention.value,
        ]
        total = sum(layer(e_XD[:num_items]).sum() for layer in of_history)
        past = Past(
            given(num_rows, longest, item.dim),
            given(num_rows, longest, item.dim),
            torch.ones(num_rows, longest, dtype=torch.bool),
        )
        cross_BSC = given(num_rows, num_targets, network.cross_dim)
        total = total + network.mix(Request(user_BE, past), target_BSD, cross_BSC).sum()
        if groups:
            prefix_BLD = given(num_rows, item.num_levels, item.dim)
            codes_BL = torch.zeros(num_rows, item.num_levels, dtype=torch.int64)
            total = total + network.token_cross(user_BE, prefix_BLD, codes_BL).sum()
        total.backward()
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
