"""DLRM-MLP: all features side by side into a multi-layer perceptron."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class DLRMConfig:
    """Size of the MLP.

    Args:
        hidden_dims: widths of the layers; the last is the tower's output.
        dropout: after each layer.
    """

    hidden_dims: tuple[int, ...]
    dropout: float = 0.0

    def build(self, feature_dims: dict[str, int]) -> DLRM:
        """The tower over features of these dims, which it takes side by side in this order."""
        return DLRM(self, sum(feature_dims.values()))


class DLRM(nn.Module):
    """The MLP baseline of TRM's Table 1.

    Shape:
        x_BF -> (B, last hidden dim).
    """

    def __init__(self, config: DLRMConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.hidden_dims[-1]
        self.blocks = nn.ModuleList([mlp(in_dim, config.hidden_dims, dropout=config.dropout)])

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, last hidden dim)."""
        for block in self.blocks:
            x_BF = block(x_BF)
        return x_BF
