"""MaskNet: hidden layers multiplied by masks that the impression itself gives.

Legend: B impressions, F features side by side, H hidden dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.modules.mlp import mlp

MaskStructure = Literal["serial", "parallel"]
"""Blocks one on the other, or side by side on the features with an MLP on top."""


@dataclass(frozen=True, kw_only=True)
class MaskNetConfig:
    """Size of a MaskNet tower.

    Args:
        num_blocks: mask blocks.
        block_dim: width of a block's output.
        structure: serial or parallel.
        reduction: width of a mask's hidden layer over F.
        hidden_dims: widths of the MLP over parallel blocks; serial ones have none.
        dropout: after each layer of the MLP.
    """

    num_blocks: int = 3
    block_dim: int = 64
    structure: MaskStructure = "parallel"
    reduction: float = 2.0
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.num_blocks < 1 or self.block_dim < 1 or self.reduction <= 0:
            raise ValueError(
                f"MaskNet: num_blocks is {self.num_blocks}, block_dim {self.block_dim} and "
                f"reduction {self.reduction}, expected positive numbers"
            )
        if (self.structure == "parallel") != bool(self.hidden_dims):
            raise ValueError(
                f"MaskNet: structure is {self.structure!r} and hidden_dims {self.hidden_dims}; "
                "parallel blocks need an MLP over them, serial ones have none"
            )
        if self.dropout and not self.hidden_dims:
            raise ValueError(
                f"MaskNet: dropout is {self.dropout}, but structure 'serial' has no MLP that it "
                "would act on; set dropout=0"
            )

    def build(self, feature_dims: dict[str, int]) -> MaskNet:
        """The tower over features of these dims, which it takes side by side in this order."""
        return MaskNet(self, feature_dims)


class FieldNorms(nn.Module):
    """LayerNorm of each field's vector on its own (MaskNet Eq. 4)."""

    def __init__(self, feature_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.widths = list(feature_dims.values())
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, F)."""
        fields = x_BF.split(self.widths, dim=1)
        return torch.cat([n(field) for n, field in zip(self.norms, fields, strict=True)], dim=1)


class MaskBlock(nn.Module):
    """`relu(LN(W (mask * x)))`, the mask being `W_2 relu(W_1 features)` (Eq. 2, 3, 7 and 8).

    Args:
        feature_dim: F, of the features that give the mask.
        in_dim: width of what is masked.
        out_dim: H.
        hidden_dim: of the mask's hidden layer.
    """

    def __init__(self, feature_dim: int, in_dim: int, out_dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.mask = mlp(feature_dim, (hidden_dim,), in_dim)
        # The norm takes any constant away.
        self.hidden = nn.Linear(in_dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, features_BF: Tensor, x_BI: Tensor) -> Tensor:
        """`features_BF` as looked up, `x_BI` normed features or the last block's output."""
        out_BH: Tensor = torch.relu(self.norm(self.hidden(self.mask(features_BF) * x_BI)))
        return out_BH


class MaskNet(nn.Module):
    """Serial or parallel MaskNet (Wang et al., 2021, section 3.5).

    Shape:
        x_BF -> (B, block_dim) serial, (B, last hidden dim) parallel.
    """

    def __init__(self, config: MaskNetConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        in_dim = sum(feature_dims.values())
        serial = config.structure == "serial"
        self.norms = FieldNorms(feature_dims)
        blocks: list[nn.Module] = [
            MaskBlock(
                in_dim,
                config.block_dim if serial and at else in_dim,
                config.block_dim,
                hidden_dim=int(in_dim * config.reduction),
            )
            for at in range(config.num_blocks)
        ]
        self.out_dim = config.block_dim
        if not serial:
            width = config.num_blocks * config.block_dim
            blocks.append(mlp(width, config.hidden_dims, dropout=config.dropout))
            self.out_dim = config.hidden_dims[-1]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, out_dim)."""
        normed_BF = self.norms(x_BF)
        if self.config.structure == "serial":
            hidden_BH = normed_BF
            for block in self.blocks:
                hidden_BH = block(x_BF, hidden_BH)
            return hidden_BH
        *blocks, deep = self.blocks
        out_BH: Tensor = deep(torch.cat([block(x_BF, normed_BF) for block in blocks], dim=1))
        return out_BH
