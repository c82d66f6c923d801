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
from trainer.modules.residual_quantizer import nearest
from trainer.modules.target_attention import Past
from trainer.modules.vq_encoder import VQEncoder


def training_flops(
    config: RankingModelConfig,
    *,
    tables: Sequence[TableSpec],
    num_tasks: int,
    num_histories: int,
    batch: Batch,
    roles: ContextRoles | None = None,
    num_items: int | None = None,
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
        num_items: of the catalogue, which a tokenizer inside the model encodes at most; None for
            more than a batch has.
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
            return _dig_flops(network, batch, num_items)
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


def _dig_flops(network: DigNetwork, batch: Batch, num_items: int | None) -> int:
    """The same of DIG, whose shapes follow from values: counted part by part, on the meta device.

    Of a step in which the encoder learns; it costs nothing once it rests. Looks at the whole
    catalogue (`track_every`) are apart.
    """
    config, item = network.config, network.config.item
    num_rows, num_in_batch = batch.batch_size, batch.items.stride()
    negatives = config.num_negatives if config.recall_weight else 0
    groups = (2 + negatives if negatives else 1) if config.recall_weight else 0
    longest = int(batch.history_offsets.diff().max())
    encoded = num_in_batch + num_rows * negatives
    if num_items is not None:
        encoded = min(encoded, num_items)

    def given(*shape: int) -> Tensor:
        return torch.empty(*shape, requires_grad=True)

    def data(*shape: int) -> Tensor:
        return torch.empty(*shape)

    user_BE = given(num_rows, network.user_dim)
    num_targets = 1 + groups * item.num_levels
    with FlopCounterMode(display=False) as counter:
        e_XD = data(encoded, item.dim) if item.fixed else _encoded(network.encoder, encoded)
        for codewords_KD in network.quantizer.codebooks_LKD:
            nearest(e_XD.detach(), codewords_KD)
        history = network.request_encoder
        of_items = [history.history_value, history.history_sums.score]
        of_items += [network.attention.key, network.attention.value]
        total = sum(layer(e_XD[:num_in_batch]).sum() for layer in of_items)
        codes_BFQ = data(num_rows, len(network.types.request_dense), config.dense_bins)
        total = total + history.dense(codes_BFQ.flatten(1)).sum()
        past = Past(
            given(num_rows, longest, item.dim),
            given(num_rows, longest, item.dim),
            torch.ones(num_rows, longest, dtype=torch.bool),
        )
        target_BSD = given(num_rows, num_targets, item.dim)
        cross_BSC = given(num_rows, num_targets, network.cross_dim)
        total = total + network.mix(Request(user_BE, past), target_BSD, cross_BSC).sum()
        if groups:
            prefix_BSLD = given(num_rows, 1 + negatives, item.num_levels, item.dim)
            codes_BSL = torch.zeros(prefix_BSLD.shape[:3], dtype=torch.int64)
            own_BLC = network.token_cross(user_BE, prefix_BSLD[:, 0], codes_BSL[:, 0])
            total = total + own_BLC.sum()
        if negatives:
            with torch.no_grad():
                user_B1E, others_BNLD = user_BE.detach().unsqueeze(1), prefix_BSLD[:, 1:].detach()
                network.token_cross(user_B1E, others_BNLD, codes_BSL[:, 1:])
        total.backward()
    return counter.get_total_flops()


def _encoded(encoder: VQEncoder, number: int) -> Tensor:
    """e_v of so many items, from look-ups on."""
    config = encoder.config
    tokens = [torch.empty(number, len(config.fields), config.dim, requires_grad=True)]
    if encoder.dense is not None:
        tokens.append(encoder.dense(torch.empty(number, len(config.dense_columns))).unsqueeze(1))
    if encoder.text is not None:
        text_ME = encoder.text(torch.empty(number, config.text_dim))
        tokens.append(text_ME.unflatten(1, (-1, config.dim)))
    x_MFD = torch.cat(tokens, dim=1)
    for block in encoder.blocks:
        x_MFD = block(x_MFD)
    e_MD: Tensor = encoder.project(x_MFD).flatten(1)
    return e_MD


def next_token_flops(
    config: RankingModelConfig,
    *,
    tables: Sequence[TableSpec],
    num_tasks: int,
    num_histories: int,
    batch: Batch,
    roles: ContextRoles | None = None,
    num_items: int | None = None,
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
            num_items=num_items,
        )
        for one in (config, replace(config, next_token=None))
    )
    return with_it - without
