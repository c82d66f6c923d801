"""WuKong: stacked factorization machines.

Legend: B impressions, T tokens (embeddings), D token dim, K rank of the factorization machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.modules.interactions import CompressTokens, combine_tokens
from trainer.modules.mlp import mlp
from trainer.modules.per_token import FeatureTokens


@dataclass(frozen=True, kw_only=True)
class WuKongConfig:
    """Size of a WuKong tower.

    Args:
        num_tokens: T, embeddings that enter and leave each layer.
        dim: D, of each.
        num_layers: layer l reaches products of up to 2^l features.
        num_fm_tokens: of the T that leave a layer, those that the factorization machine makes; the
            others are linear combinations.
        rank: K, columns that the matrix of all inner products is projected to.
        hidden_dims: hidden layers of the machine's MLP.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    num_fm_tokens: int
    rank: int
    hidden_dims: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if not 1 <= self.num_fm_tokens < self.num_tokens:
            raise ValueError(
                f"WuKong: num_fm_tokens is {self.num_fm_tokens}, expected from 1 to num_tokens - 1 "
                f"({self.num_tokens - 1}), so that linear combinations are left beside them"
            )
        if self.rank < 1:
            raise ValueError(f"WuKong: rank is {self.rank}, expected at least 1")

    def build(self, feature_dims: dict[str, int]) -> WuKong:
        """The tower over features of these dims, which it takes side by side in this order."""
        return WuKong(self, sum(feature_dims.values()))


class WuKongLayer(nn.Module):
    """`LN([FMB(X), LCB(X)] + X)` (WuKong section 3.4, Eq. 3 to 5).

    FMB is `MLP(LN(flatten(X X^T Y)))` with a learned Y of shape (T, K): the optimised machine of
    section 3.5, which multiplies X by `X^T Y` and never forms the T x T inner products. LCB is
    `W X`. As many tokens leave as enter, so the residual needs no projection.
    """

    def __init__(self, config: WuKongConfig) -> None:
        super().__init__()
        num_tokens, made = config.num_tokens, config.num_fm_tokens
        self.project = nn.Linear(num_tokens, config.rank, bias=False)
        self.fm_norm = nn.LayerNorm(num_tokens * config.rank)
        self.mlp = mlp(num_tokens * config.rank, config.hidden_dims, made * config.dim)
        self.compress = CompressTokens(num_tokens, num_tokens - made)
        self.norm = nn.LayerNorm(config.dim)
        self.num_fm_tokens = made

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        projected_BKD = combine_tokens(self.project.weight, x_BTD)
        products_BTK = torch.bmm(x_BTD, projected_BKD.transpose(1, 2))
        machine_BND = self.mlp(self.fm_norm(products_BTK.flatten(1))).unflatten(
            1, (self.num_fm_tokens, -1)
        )
        out_BTD: Tensor = self.norm(torch.cat([machine_BND, self.compress(x_BTD)], dim=1) + x_BTD)
        return out_BTD


class WuKong(nn.Module):
    """Features -> T tokens -> layers -> all tokens side by side (Zhang et al., 2024a).

    Shape:
        x_BF -> (B, T * D).
    """

    def __init__(self, config: WuKongConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.num_tokens * config.dim
        self.tokenize = FeatureTokens(in_dim, num_tokens=config.num_tokens, dim=config.dim)
        self.blocks = nn.ModuleList(WuKongLayer(config) for _ in range(config.num_layers))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, T * D)."""
        x_BTD: Tensor = self.tokenize(x_BF)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD.flatten(1)
