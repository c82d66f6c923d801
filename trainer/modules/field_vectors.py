"""Features side by side as one vector of one dim a field, which products and attention need.

Legend: B impressions, F features side by side, N fields, D dim of a field's vector.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class FieldVectors(nn.Module):
    """Cuts features into fields; those of another dim are projected linearly to the common one.

    The papers give all fields one dim. Here user and item vectors may be wider than those of small
    features, and dense features are one block: each field whose dim differs has a projection of
    its own, the others are taken as they are.

    Args:
        feature_dims: name -> dim of each field, in order.
        dim: D; None when all fields agree.
        model: name of the architecture, for the message.

    Shape:
        (B, F) -> (B, N, D).

    Raises:
        ValueError: when dims differ and `dim` is None.
    """

    def __init__(self, feature_dims: Mapping[str, int], dim: int | None, *, model: str) -> None:
        super().__init__()
        dims = sorted(set(feature_dims.values()))
        if dim is None and len(dims) != 1:
            raise ValueError(
                f"{model} multiplies the vectors of all features with each other, so all need one "
                f"dim, but found {dims}: {dict(feature_dims)}; set field_dim, to which features of "
                "other dims are projected, or give every table, the item vector "
                "(model.item.item_dim) and the dense features (model.dense_dim) the same dim"
            )
        self.dim = dims[0] if dim is None else dim
        self.widths = list(feature_dims.values())
        self.num_fields = len(self.widths)
        self.projections = nn.ModuleDict(
            {str(at): nn.Linear(w, self.dim) for at, w in enumerate(self.widths) if w != self.dim}
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, N, D)."""
        if not self.projections:
            return x_BF.unflatten(1, (self.num_fields, self.dim))
        fields = list(x_BF.split(self.widths, dim=1))
        for at, projection in self.projections.items():
            fields[int(at)] = projection(fields[int(at)])
        return torch.stack([field.to(x_BF.dtype) for field in fields], dim=1)


def pairwise_products(x_BND: Tensor) -> Tensor:
    """Sum of the inner products of all pairs of N vectors: (B, N, D) -> (B, 1).

    The second order of a factorization machine (Rendle 2010, Eq. 1), from the square of the sum
    and the sum of the squares (Lemma 3.1), in time linear in N. TorchRec's `FactorizationMachine`
    sums over dims before it squares, so it also multiplies each dim with every other, within one
    vector too: another function, which is why it is not used.
    """
    square_of_sum_B = x_BND.sum(dim=1).square().sum(dim=1)
    sum_of_squares_B = x_BND.square().sum(dim=(1, 2))
    return (0.5 * (square_of_sum_B - sum_of_squares_B)).unsqueeze(1)
