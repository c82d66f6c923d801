"""The ranking model: tables, network and the joint objective.

Legend: B impressions, N tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.batch import Batch
from trainer.batch_parts import LossInParts
from trainer.models.ranking_network import Precision, RankingModelConfig, RankingNetwork
from trainer.models.sparse_arch import SparseArch
from trainer.models.tower import RegularizedTower
from trainer.modules.next_token import ContextRoles

__all__ = [
    "JointLoss",
    "Outputs",
    "Precision",
    "RankingModel",
    "RankingModelConfig",
    "RankingNetwork",
    "check_item_features",
]


class Outputs(NamedTuple):
    """What a forward pass returns beside the loss.

    Attributes:
        logits_BN: float32, one column a task.
        labels_BN: float32.
        row_B: int64 positions in the log.
        losses: the parts of the loss before they are weighted, detached scalars:
            `discriminative` (Eq. 5), and in training `next_token` (Eq. 6) and `tower` (a tower's
            own term) where the model has them.
    """

    logits_BN: Tensor
    labels_BN: Tensor
    row_B: Tensor
    losses: dict[str, Tensor]


class RankingModel(nn.Module):
    """Sparse side and network; returns the loss and the predictions.

    Args:
        config: of the network.
        tables: every embedding table.
        num_dense: number of dense features.
        num_tasks: number of labels.
        num_histories: histories of the schema.
        roles: which features are query and user; needed with `config.next_token` alone.
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
        roles: ContextRoles | None = None,
        sparse_device: torch.device | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        check_item_features(config, tables)
        self.parts: LossInParts | None = None
        self.sparse = SparseArch(tables, sparse_device or torch.device("cpu"))
        self.network = RankingNetwork(
            config,
            tables=tables,
            num_dense=num_dense,
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
            precision=precision,
        )
        self.objective = JointLoss(config.next_token.weight if config.next_token else 0.0)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss (scalar) and predictions of one batch."""
        pooled, items = self.sparse(batch)
        if self.training and self.parts is not None:
            return self.parts(batch, pooled, items)
        return self.loss(batch, pooled, items)

    def train_in_parts(self, num_parts: int) -> None:
        """From now on, send a training batch through the network in parts, to save memory.

        Raises:
            ValueError: for a tower whose own loss adapts once a step, to all rows of the batch.
        """
        if isinstance(self.network.tower, RegularizedTower):
            raise ValueError(
                f"train.gradient_accumulation is {num_parts}, but the loss of the tower "
                f"({type(self.network.tower).__name__}) adapts to whole batches; set it to 1, and "
                "train.activation_checkpointing to save memory"
            )
        self.parts = LossInParts(self.loss, num_parts)

    def loss(
        self, batch: Batch, pooled: KeyedTensor, items: dict[str, JaggedTensor]
    ) -> tuple[Tensor, Outputs]:
        """The same from looked-up embeddings."""
        found = self.network(batch, pooled, items)
        loss, losses = self.objective(found.logits_BN, batch.labels_BN, found.losses)
        return loss, Outputs(found.logits_BN.detach(), batch.labels_BN, batch.row_B, losses)


class JointLoss(nn.Module):
    """The learning objective, TRM Eq. 7: discriminative loss + lambda * generative loss.

    Args:
        next_token_weight: lambda.
    """

    def __init__(self, next_token_weight: float) -> None:
        super().__init__()
        self.next_token_weight = next_token_weight

    def forward(
        self, logits_BN: Tensor, labels_BN: Tensor, others: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and its parts detached and not weighted. Eq. 5 is averaged over tasks."""
        discriminative = binary_cross_entropy_with_logits(logits_BN, labels_BN)
        loss = discriminative
        if "next_token" in others:
            loss = loss + self.next_token_weight * others["next_token"]
        if "tower" in others:
            loss = loss + others["tower"]
        parts = {"discriminative": discriminative, **others}
        return loss, {name: part.detach() for name, part in parts.items()}


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
