"""DCN-v2: explicit feature crosses of growing degree, with a deep network behind or beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.modules.cross import CrossLayer
from trainer.modules.mlp import mlp

Structure = Literal["stacked", "parallel"]
"""Where the deep network stands: behind the crosses, or beside them on the same features."""


@dataclass(frozen=True, kw_only=True)
class DCNv2Config:
    """Size of a DCN-v2 tower.

    Args:
        num_layers: cross layers; products of up to `num_layers` + 1 features are in reach.
        hidden_dims: widths of the deep network.
        rank: of each cross layer's matrix; None for full ones.
        structure: deep network behind the crosses, or beside them.
        dropout: after each layer of the deep network.
    """

    num_layers: int
    hidden_dims: tuple[int, ...]
    rank: int | None = None
    structure: Structure = "parallel"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.num_layers < 1 or not self.hidden_dims:
            raise ValueError(
                f"DCN-v2: num_layers is {self.num_layers} and hidden_dims {self.hidden_dims}, "
                "expected at least one layer of each"
            )
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"DCN-v2: rank is {self.rank}, expected at least 1, or None")

    def build(self, feature_dims: dict[str, int]) -> DCNv2:
        """The tower over features of these dims, which it takes side by side in this order."""
        return DCNv2(self, sum(feature_dims.values()))


class DCNv2(nn.Module):
    """Deep & Cross Network v2 (Wang et al., 2021, sections 3.2 to 3.4).

    Stacked: `deep(cross(x))`. Parallel: `[cross(x), deep(x)]`, which task heads read side by side.

    Shape:
        x_BF -> (B, last hidden dim) stacked, (B, F + last hidden dim) parallel.
    """

    def __init__(self, config: DCNv2Config, in_dim: int) -> None:
        super().__init__()
        self.config = config
        crosses = [CrossLayer(in_dim, rank=config.rank) for _ in range(config.num_layers)]
        deep = mlp(in_dim, config.hidden_dims, dropout=config.dropout)
        self.blocks = nn.ModuleList([*crosses, deep])
        self.out_dim = config.hidden_dims[-1] + (in_dim if config.structure == "parallel" else 0)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, out_dim)."""
        *crosses, deep = self.blocks
        crossed_BF = x_BF
        for cross in crosses:
            crossed_BF = cross(x_BF, crossed_BF)
        if self.config.structure == "stacked":
            stacked_BH: Tensor = deep(crossed_BF)
            return stacked_BH
        return torch.cat([crossed_BF, deep(x_BF)], dim=1)
