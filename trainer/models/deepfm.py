"""DeepFM: a factorization machine and an MLP over the same feature vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """Size of a DeepFM tower.

    Args:
        hidden_dims: widths of the MLP's layers.
        dropout: after each layer of the MLP.
    """

    hidden_dims: tuple[int, ...]
    dropout: float = 0.0

    def build(self, feature_dims: dict[str, int]) -> DeepFM:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when the dims differ, since a factorization machine multiplies every
                feature's vector with every other's.
        """
        dims = sorted(set(feature_dims.values()))
        if len(dims) != 1:
            raise ValueError(
                "DeepFM multiplies the vectors of all features with each other, so all need one "
                f"dim, but found {dims}: {feature_dims}; give every table, the item vector "
                "(model.item.item_dim) and the dense features (model.dense_dim) the same dim"
            )
        return DeepFM(self, num_features=len(feature_dims), feature_dim=dims[0])


class DeepFM(nn.Module):
    """DeepFM (Guo et al., 2017): first order, second order and deep part side by side.

    The first order is a linear layer over the vectors, so no second set of tables of dim 1 is
    needed. The second order is Eq. 2's sum of pairwise inner products. Task heads read the three
    parts next to each other, each with weights of its own.

    Args:
        config: sizes of the MLP.
        num_features: number of feature vectors.
        feature_dim: D, dim of each.

    Shape:
        x_BF -> (B, last hidden dim + 2), with F = num_features * feature_dim.
    """

    def __init__(self, config: DeepFMConfig, *, num_features: int, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = num_features
        self.feature_dim = feature_dim
        in_dim = num_features * feature_dim
        self.out_dim = config.hidden_dims[-1] + 2
        self.blocks = nn.ModuleList([mlp(in_dim, config.hidden_dims, dropout=config.dropout)])
        self.first_order = nn.Linear(in_dim, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, last hidden dim + 2)."""
        deep_BH = x_BF
        for block in self.blocks:
            deep_BH = block(deep_BH)
        second_B1 = pairwise_products(x_BF.view(-1, self.num_features, self.feature_dim))
        return torch.cat([deep_BH, self.first_order(x_BF), second_B1.to(deep_BH.dtype)], dim=1)


def pairwise_products(x_BND: Tensor) -> Tensor:
    """Sum of the inner products of all pairs of N vectors: (B, N, D) -> (B, 1).

    Computed from the square of the sum and the sum of the squares, in time linear in N.
    """
    square_of_sum_B = x_BND.sum(dim=1).square().sum(dim=1)
    sum_of_squares_B = x_BND.square().sum(dim=(1, 2))
    return (0.5 * (square_of_sum_B - sum_of_squares_B)).unsqueeze(1)
