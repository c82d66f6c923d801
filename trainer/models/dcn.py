"""DCN: explicit feature crosses with a vector a layer, and a deep network beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import VectorCrossNet

from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class DCNConfig:
    """Size of a DCN tower.

    Args:
        num_layers: cross layers; products of up to `num_layers` + 1 features are in reach.
        hidden_dims: widths of the deep network.
        dropout: after each layer of the deep network.
    """

    num_layers: int
    hidden_dims: tuple[int, ...]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if self.num_layers < 1 or not self.hidden_dims:
            raise ValueError(
                f"DCN: num_layers is {self.num_layers} and hidden_dims {self.hidden_dims}, "
                "expected at least one layer of each"
            )

    def build(self, feature_dims: dict[str, int]) -> DCN:
        """The tower over features of these dims, which it takes side by side in this order."""
        return DCN(self, sum(feature_dims.values()))


class VectorCross(nn.Module):
    """TorchRec's cross network of DCN, which can be drawn after it was built without memory.

    Shape:
        (B, F) -> (B, F).
    """

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = VectorCrossNet(dim, num_layers)

    def reset_parameters(self) -> None:
        """Draw the vectors as TorchRec does; biases are zero."""
        for kernel in self.layers.kernels.parameters():
            nn.init.xavier_normal_(kernel)
        for bias in self.layers.bias.parameters():
            nn.init.zeros_(bias)

    def forward(self, x_BF: Tensor) -> Tensor:
        """`x_0 (x_l . w_l) + b_l + x_l` in each layer (DCN Eq. 3)."""
        crossed_BF: Tensor = self.layers(x_BF)
        return crossed_BF


class DCN(nn.Module):
    """Deep & Cross Network (Wang et al., 2017): `[cross(x), deep(x)]`, side by side.

    Shape:
        x_BF -> (B, F + last hidden dim).
    """

    def __init__(self, config: DCNConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = in_dim + config.hidden_dims[-1]
        self.blocks = nn.ModuleList(
            [
                VectorCross(in_dim, config.num_layers),
                mlp(in_dim, config.hidden_dims, dropout=config.dropout),
            ]
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, F + last hidden dim)."""
        cross, deep = self.blocks
        return torch.cat([cross(x_BF), deep(x_BF)], dim=1)
