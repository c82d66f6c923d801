"""A factorization machine over the feature vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.modules.field_vectors import FieldVectors, pairwise_products


@dataclass(frozen=True, kw_only=True)
class FMConfig:
    """A factorization machine, whose size is that of its features.

    Args:
        field_dim: dim that features of other dims are projected to; None where all agree.
    """

    field_dim: int | None = None

    def build(self, feature_dims: dict[str, int]) -> FM:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when dims differ and `field_dim` is None.
        """
        return FM(self, feature_dims)


class FM(nn.Module):
    """First and second order side by side (Rendle 2010, Eq. 1); task heads weigh the two.

    The first order is a linear layer over the vectors: an ID's weight is the product of its vector
    with a direction that all IDs of its field share, so that no second set of tables of dim 1 is
    looked up and sharded. Fields are the vectors that towers get: an item's and a history's too.

    Shape:
        x_BF -> (B, 2).
    """

    def __init__(self, config: FMConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.out_dim = 2
        first_order = nn.Linear(sum(feature_dims.values()), 1)
        fields = FieldVectors(feature_dims, config.field_dim, model="FM")
        self.blocks = nn.ModuleList([first_order, fields])

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, 2)."""
        first_order, fields = self.blocks
        first_B1 = first_order(x_BF)
        second_B1 = pairwise_products(fields(x_BF))
        return torch.cat([first_B1, second_B1.to(first_B1.dtype)], dim=1)
