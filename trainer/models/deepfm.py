"""DeepFM: a factorization machine and an MLP over the same feature vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.modules.field_vectors import FieldVectors, pairwise_products
from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig:
    """Size of a DeepFM tower.

    Args:
        hidden_dims: widths of the MLP's layers.
        dropout: after each layer of the MLP.
        field_dim: dim that features of other dims are projected to, for the second order; None
            where all agree.
    """

    hidden_dims: tuple[int, ...]
    dropout: float = 0.0
    field_dim: int | None = None

    def build(self, feature_dims: dict[str, int]) -> DeepFM:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when dims differ and `field_dim` is None.
        """
        return DeepFM(self, feature_dims)


class DeepFM(nn.Module):
    """DeepFM (Guo et al., 2017): first order, second order and deep part side by side.

    The first order is a linear layer over the vectors, so no second set of tables of dim 1 is
    needed. The second order is Eq. 2's sum of pairwise inner products. Task heads read the three
    parts next to each other, each with weights of its own.

    Args:
        config: sizes.
        feature_dims: name -> dim of each feature, in order.

    Shape:
        x_BF -> (B, last hidden dim + 2).
    """

    def __init__(self, config: DeepFMConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        in_dim = sum(feature_dims.values())
        self.out_dim = config.hidden_dims[-1] + 2
        self.fields = FieldVectors(feature_dims, config.field_dim, model="DeepFM")
        self.blocks = nn.ModuleList([mlp(in_dim, config.hidden_dims, dropout=config.dropout)])
        self.first_order = nn.Linear(in_dim, 1)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, last hidden dim + 2)."""
        deep_BH = x_BF
        for block in self.blocks:
            deep_BH = block(deep_BH)
        second_B1 = pairwise_products(self.fields(x_BF))
        return torch.cat([deep_BH, self.first_order(x_BF), second_B1.to(deep_BH.dtype)], dim=1)
