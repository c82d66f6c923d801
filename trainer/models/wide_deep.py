"""Wide & Deep: a linear model and an MLP, trained together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class WideDeepConfig:
    """Size of a Wide & Deep tower.

    Args:
        hidden_dims: widths of the deep part's layers.
        dropout: after each of them.
    """

    hidden_dims: tuple[int, ...]
    dropout: float = 0.0

    def build(self, feature_dims: dict[str, int]) -> WideDeep:
        """The tower over features of these dims, which it takes side by side in this order."""
        return WideDeep(self, sum(feature_dims.values()))


class WideDeep(nn.Module):
    """Wide and deep part side by side (Cheng et al., 2016, Eq. 3); task heads add the two.

    The wide part is a linear layer over the vectors (see :class:`trainer.models.fm.FM` why there
    are no tables of dim 1 for it). The paper's cross-product features are chosen by hand: here
    they are columns of the log (entity `cross` of the schema), which both parts read.

    Shape:
        x_BF -> (B, last hidden dim + 1).
    """

    def __init__(self, config: WideDeepConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.hidden_dims[-1] + 1
        self.wide = nn.Linear(in_dim, 1)
        self.blocks = nn.ModuleList([mlp(in_dim, config.hidden_dims, dropout=config.dropout)])

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, last hidden dim + 1)."""
        deep_BH = x_BF
        for block in self.blocks:
            deep_BH = block(deep_BH)
        return torch.cat([deep_BH, self.wide(x_BF)], dim=1)
