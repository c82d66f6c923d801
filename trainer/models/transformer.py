"""A pure transformer: features as tokens, and no other feature-cross module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from trainer.modules.per_token import FeatureTokens
from trainer.modules.transformer_block import TransformerBlock, check_heads

Weights = Literal["shared", "per_token"]
"""`shared`: one set of projections for all tokens; `per_token`: each token has its own."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Size of a transformer tower.

    Args:
        num_tokens: T.
        dim: D, dim of a token; a multiple of `num_heads`.
        num_layers: number of blocks.
        num_heads: of attention.
        expansion: hidden dim of the feed-forward network over D.
        weights: shared by all tokens, or of each token. Features differ from words in that token t
            always holds the same features, so weights of its own cost parameters but no FLOPs.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    num_heads: int = 4
    expansion: float = 4.0
    weights: Weights = "shared"

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: when tokens can't be cut into heads.
        """
        check_heads("transformer", self.dim, self.num_heads)

    def build(self, feature_dims: dict[str, int]) -> Transformer:
        """The tower over features of these dims, which it takes side by side in this order."""
        return Transformer(self, sum(feature_dims.values()))


class Transformer(nn.Module):
    """Features -> T tokens -> pre-norm blocks -> norm -> mean over tokens (TRM section 4.2).

    The projection of each token has a bias of its own, which tells positions apart.

    Shape:
        x_BF -> (B, D).
    """

    def __init__(self, config: TransformerConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.dim
        self.tokenize = FeatureTokens(in_dim, num_tokens=config.num_tokens, dim=config.dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim=config.dim,
                num_heads=config.num_heads,
                hidden_dim=int(config.dim * config.expansion),
                num_tokens=config.num_tokens if config.weights == "per_token" else None,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        x_BTD: Tensor = self.tokenize(x_BF)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        mean_BD: Tensor = self.norm(x_BTD).mean(dim=1)
        return mean_BD
