"""What is known of an impression before there is an item: DIG's e_u, and the histories.

Legend: B impressions, U distinct items, F dense features, Q bins, D item dim, E width of e_u.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.batch import Batch
from trainer.modules.feature_types import FeatureTypes
from trainer.modules.mlp import mlp
from trainer.modules.rank_batch_norm import RankBatchNorm
from trainer.modules.recent_history import RecentHistory
from trainer.modules.target_attention import Past


class Request(NamedTuple):
    """Type II of DIG's Table 1.

    Attributes:
        user_BE: e_u, normalized by BN_u.
        past: keys and values of the histories.
    """

    user_BE: Tensor
    past: Past

    def take(self, rows: Tensor) -> Request:
        """Some of the rows, in this order."""
        past = Past(*(part.index_select(0, rows) for part in self.past))
        return Request(self.user_BE.index_select(0, rows), past)


class RequestEncoder(nn.Module):
    """e_u through BN_u: ids, numbers and a summary of the histories, side by side.

    Args:
        types: the model's features.
        num_bins: Q.
        dense_dim: width that numbers are projected to.
        item_dim: D.
        num_histories: kinds of feedback.
        num_heads: vectors that the history is summed up in.
    """

    def __init__(
        self,
        types: FeatureTypes,
        *,
        num_bins: int,
        dense_dim: int,
        item_dim: int,
        num_histories: int,
        num_heads: int,
    ) -> None:
        super().__init__()
        self.types = types
        self.item_dim = item_dim
        self.out_dim = sum(types.request.values()) + dense_dim + num_heads * item_dim
        self.dense = mlp(num_bins * len(types.request_dense), (dense_dim,))
        self.history_value = nn.Linear(item_dim, num_histories * item_dim, bias=False)
        self.history_sums = RecentHistory(item_dim, num_kinds=num_histories, num_heads=num_heads)
        self.norm = RankBatchNorm(self.out_dim)

    def forward(
        self, batch: Batch, by_feature: Mapping[str, Tensor], dense_BFQ: Tensor, item_UD: Tensor
    ) -> Tensor:
        """Encode a batch.

        Args:
            batch: with the histories.
            by_feature: embeddings of the pooled features.
            dense_BFQ: codes of all dense features.
            item_UD: the batch's items.

        Returns:
            (B, E).
        """
        user_BE = torch.cat(
            [
                *(by_feature[name] for name in self.types.request),
                self.dense(dense_BFQ[:, self.types.request_dense].flatten(1)),
                self.history_sums(
                    item_UD,
                    self.history_value(item_UD).view(-1, self.item_dim),
                    batch.history_T,
                    batch.history_kind_T,
                    batch.history_offsets,
                ),
            ],
            dim=1,
        )
        normalized: Tensor = self.norm(user_BE)
        return normalized
