"""The ranking model: sparse side, item encoder, history, tower, one head per task.

Legend: B impressions, U distinct items, N tasks, D item dim, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.models.sparse_arch import SparseArch
from trainer.models.tower import Tower, TowerConfig
from trainer.modules.dense_encoding import PiecewiseLinearEncoding
from trainer.modules.hybrid_tokens import HybridTokensConfig, ItemIdConfig
from trainer.modules.mlp import mlp
from trainer.modules.target_attention import FeedbackSum, TargetAttention

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RankingModelConfig:
    """Everything dense about a ranking model; its tables are named beside it.

    Args:
        item: what stands for an item: its ID or its tokens.
        tower: the interaction architecture. It never knows what stands for an item.
        dense_bins: quantile bins per dense feature.
        dense_dim: width to which the binned dense features are projected.
        head_dims: hidden layers of each task head.
        id_dropout: share of training rows whose residual-ID embeddings (users, queries) are
            zeroed, so that the network learns to do without them where an ID is new.
    """

    item: ItemIdConfig | HybridTokensConfig
    tower: TowerConfig
    dense_bins: int = 16
    dense_dim: int = 64
    head_dims: tuple[int, ...] = ()
    id_dropout: float = 0.0


class Outputs(NamedTuple):
    """What a forward pass returns beside the loss.

    Attributes:
        logits_BN: float32, one column a task.
        labels_BN: float32.
        row_B: int64 positions in the log.
    """

    logits_BN: Tensor
    labels_BN: Tensor
    row_B: Tensor


class RankingNetwork(nn.Module):
    """All dense parameters: replicated or sharded with FSDP, never by the planner.

    Args:
        config: sizes.
        tables: to know names, dims and order of the pooled features.
        num_dense: number of dense features.
        num_tasks: N.
        num_histories: kinds of feedback in the histories.
        precision: of the matrix products; `bf16` runs them under autocast.
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        tables: Sequence[TableSpec],
        num_dense: int,
        num_tasks: int,
        num_histories: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.config = config
        self.precision = precision
        pooled_dims = {
            feature: table.dim
            for table in tables
            if table.pooling != "none"
            for feature in table.features
        }
        self.pooled_features = list(pooled_dims)
        self.residual_ids = [
            feature
            for table in tables
            if table.role == "residual_id" and table.pooling != "none"
            for feature in table.features
        ]
        self.dense_encoding = PiecewiseLinearEncoding(
            num_features=num_dense, num_bins=config.dense_bins
        )
        self.dense_arch = mlp(self.dense_encoding.out_dim, (config.dense_dim,))
        self.item_encoder = config.item.build()
        self.history = TargetAttention(config.item.item_dim, num_kinds=num_histories)
        self.feedback_sum = FeedbackSum(config.item.item_dim, num_kinds=num_histories)
        item_dim = config.item.item_dim
        self.tower: Tower = config.tower.build(
            {
                **pooled_dims,
                "candidate": item_dim,
                "history": item_dim,
                "candidate_x_history": item_dim,
                "feedback_sum": 2 * item_dim,
                "dense": config.dense_dim,
            }
        )
        self.heads = nn.ModuleList(
            mlp(self.tower.out_dim, config.head_dims, 1) for _ in range(num_tasks)
        )

    def forward(self, batch: Batch, pooled: KeyedTensor, items: dict[str, JaggedTensor]) -> Tensor:
        """Logits (B, N) in float32."""
        with self._autocast(batch.dense_BF.device):
            item_UD = self.item_encoder(items)
            candidate_BD = item_UD.index_select(0, batch.candidate_B)
            past = (
                item_UD,
                batch.candidate_B,
                batch.history_T,
                batch.history_kind_T,
                batch.history_offsets,
            )
            history_BD = self.history(*past)
            by_feature = self._without_some_ids(pooled.to_dict())
            x_BF = torch.cat(
                [by_feature[feature] for feature in self.pooled_features]
                + [
                    candidate_BD,
                    history_BD,
                    candidate_BD * history_BD,
                    self.feedback_sum(*past),
                    self.dense_arch(self.dense_encoding(batch.dense_BF)),
                ],
                dim=1,
            )
            out_BD = self.tower(x_BF)
            return torch.cat([head(out_BD) for head in self.heads], dim=1).float()

    def _without_some_ids(self, by_feature: dict[str, Tensor]) -> dict[str, Tensor]:
        """During training, zero residual-ID embeddings of a random share of the rows."""
        if not self.training or not self.config.id_dropout:
            return by_feature
        dropped = {}
        for feature in self.residual_ids:
            value_BD = by_feature[feature]
            keep_B1 = torch.rand(value_BD.shape[0], 1, device=value_BD.device)
            dropped[feature] = value_BD * (keep_B1 >= self.config.id_dropout)
        return {**by_feature, **dropped}

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


class RankingModel(nn.Module):
    """Sparse side and network; returns the loss and the predictions.

    Args:
        config: of the network.
        tables: every embedding table.
        num_dense: number of dense features.
        num_tasks: number of labels.
        num_histories: histories of the schema.
        sparse_device: `meta` when the tables are sharded afterwards.
        precision: of the network's matrix products.

    Example::

        model = RankingModel(config, tables=tables, num_dense=10, num_tasks=2, num_histories=1)
        loss, predictions = model(batch)
    """

    def __init__(
        self,
        config: RankingModelConfig,
        *,
        tables: Sequence[TableSpec],
        num_dense: int,
        num_tasks: int,
        num_histories: int,
        sparse_device: torch.device | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        check_item_features(config, tables)
        self.sparse = SparseArch(tables, sparse_device or torch.device("cpu"))
        self.network = RankingNetwork(
            config,
            tables=tables,
            num_dense=num_dense,
            num_tasks=num_tasks,
            num_histories=num_histories,
            precision=precision,
        )

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss (scalar) and predictions of one batch; TRM Eq. 5, averaged over tasks."""
        pooled, items = self.sparse(batch)
        logits_BN = self.network(batch, pooled, items)
        loss = binary_cross_entropy_with_logits(logits_BN, batch.labels_BN)
        return loss, Outputs(logits_BN.detach(), batch.labels_BN, batch.row_B)


def check_item_features(config: RankingModelConfig, tables: Sequence[TableSpec]) -> None:
    """Check that the tables hold what the item encoder reads, in the dim that it reads.

    Raises:
        ValueError: naming the table or feature, what was found and what is expected.
    """
    found = {
        feature: table for table in tables if table.pooling == "none" for feature in table.features
    }
    if set(found) != set(config.item.features):
        raise ValueError(
            f"model.item reads {sorted(config.item.features)} but the tables with pooling='none' "
            f"hold {sorted(found)}"
        )
    for feature, table in found.items():
        expected = config.item.table_dims[feature]
        if table.dim != expected:
            raise ValueError(
                f"table {table.name!r}: dim is {table.dim}, but model.item.table_dims has "
                f"{expected} (feature {feature!r})"
            )
