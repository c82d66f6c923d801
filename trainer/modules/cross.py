"""The cross layer of DCN-v2.

Legend: B impressions, F width.
"""

from __future__ import annotations

from torch import Tensor, nn


class CrossLayer(nn.Module):
    """Multiplies the input features with a linear map of the last layer (DCN-v2 Eq. 1 and 2).

    Full rank: `x_0 * (W x + b) + x`. Low rank: `x_0 * (U V^T x + b) + x` with U and V of shape
    (F, rank). After l such layers all products of up to l + 1 features are in reach.

    Args:
        dim: F.
        rank: of the factored matrix; None for a full one.
    """

    def __init__(self, dim: int, *, rank: int | None = None) -> None:
        super().__init__()
        self.linear: nn.Module = (
            nn.Linear(dim, dim)
            if rank is None
            else nn.Sequential(nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim))
        )

    def forward(self, first_BF: Tensor, x_BF: Tensor) -> Tensor:
        """`first_BF` is the input of the first layer, `x_BF` the output of the last one."""
        crossed: Tensor = first_BF * self.linear(x_BF) + x_BF
        return crossed
