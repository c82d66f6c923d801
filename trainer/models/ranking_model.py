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
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.modules.next_token_config import ContextRoles

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
            `discriminative` (Eq. 5), and in training those that the network adds: `next_token`
            (Eq. 6), `tower` (a tower's own term), DIG's, and numbers that are only reported.
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
        self.sparse = SparseArch(
            tables,
            sparse_device or torch.device("cpu"),
            whole_item_tables=isinstance(config.item, LearnedTokensConfig),
        )
        self.network = config.build_network(
            tables=tables,
            num_dense=num_dense,
            num_tasks=num_tasks,
            num_histories=num_histories,
            roles=roles,
            precision=precision,
        )
        self.objective = JointLoss(config.loss_weights)

    def forward(self, batch: Batch) -> tuple[Tensor, Outputs]:
        """Loss (scalar) and predictions of one batch."""
        pooled, items = self.sparse(batch)
        if self.training and self.parts is not None:
            return self.parts(batch, pooled, items)
        return self.loss(batch, pooled, items)

    def train_in_parts(self, num_parts: int) -> None:
        """From now on, send a training batch through the network in parts, to save memory.

        Raises:
            ValueError: for a tower whose own loss adapts once a step, to all rows of the batch,
                and for a model whose losses are over whole batches.
        """
        if isinstance(self.network.config.item, LearnedTokensConfig):
            raise ValueError(
                f"train.gradient_accumulation is {num_parts}, but DIG's statistics (batch "
                "normalization, u2t, codebooks) are over whole batches; set it to 1"
            )
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
    """The learning objective: discriminative loss + weighted others (TRM Eq. 7, DIG Eq. 8).

    Args:
        weights: of the other losses by name; what has none is reported and not learned from.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(
        self, logits_BN: Tensor, labels_BN: Tensor, others: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and its parts detached and not weighted. The first is averaged over tasks."""
        discriminative = binary_cross_entropy_with_logits(logits_BN, labels_BN)
        loss = discriminative
        for name, weight in self.weights.items():
            if name in others:
                loss = loss + weight * others[name]
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
