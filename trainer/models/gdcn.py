"""GDCN: feature crosses behind a gate, which decides what each of them lets through."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models.dcn_v2 import Structure
from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class GDCNConfig:
    """Size of a GDCN tower.

    Args:
        num_layers: gated cross layers; products of up to `num_layers` + 1 features are in reach.
        hidden_dims: widths of the deep network.
        structure: deep network behind the crosses (GDCN-S), or beside them (GDCN-P).
        dropout: after each layer of the deep network.
    """

    num_layers: int
    hidden_dims: tuple[int, ...]
    structure: Structure = "parallel"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.num_layers < 1 or not self.hidden_dims:
            raise ValueError(
                f"GDCN: num_layers is {self.num_layers} and hidden_dims {self.hidden_dims}, "
                "expected at least one layer of each"
            )

    def build(self, feature_dims: dict[str, int]) -> GDCN:
        """The tower over features of these dims, which it takes side by side in this order."""
        return GDCN(self, sum(feature_dims.values()))


class GatedCrossLayer(nn.Module):
    """`x_0 * (W_c x + b) * sigmoid(W_g x) + x` (GDCN Eq. 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cross = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim, bias=False)

    def forward(self, first_BF: Tensor, x_BF: Tensor) -> Tensor:
        """`first_BF` is the input of the first layer, `x_BF` the output of the last one."""
        crossed: Tensor = first_BF * self.cross(x_BF) * torch.sigmoid(self.gate(x_BF)) + x_BF
        return crossed


class GDCN(nn.Module):
    """Gated Deep Cross Network (Wang et al., 2023, sections 3.2 to 3.4).

    The paper's field-wise choice of embedding dims (section 4) is a choice of tables, so it is not
    part of the tower.

    Shape:
        x_BF -> (B, last hidden dim) stacked, (B, F + last hidden dim) parallel.
    """

    def __init__(self, config: GDCNConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        crosses = [GatedCrossLayer(in_dim) for _ in range(config.num_layers)]
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
