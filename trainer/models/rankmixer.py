"""RankMixer: token mixing and per-token feed-forward networks as the interaction architecture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from trainer.modules.per_token import FeatureTokens
from trainer.modules.token_mixing import PerTokenFFN, RankMixerBlock


@dataclass(frozen=True, kw_only=True)
class RankMixerConfig:
    """Size of a RankMixer tower.

    Args:
        num_tokens: T; also the number of heads of token mixing.
        dim: D, dim of a token; a multiple of `num_tokens`.
        num_layers: number of blocks.
        expansion: hidden dim of a token's network over D.
    """

    num_tokens: int
    dim: int
    num_layers: int = 2
    expansion: float = 4.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: when tokens can't be cut into heads.
        """
        if self.dim % self.num_tokens:
            raise ValueError(
                f"RankMixer: dim ({self.dim}) must be a multiple of num_tokens "
                f"({self.num_tokens}), since each token is cut into num_tokens heads"
            )

    def build(self, feature_dims: dict[str, int]) -> RankMixer:
        """The tower over features of these dims, which it takes side by side in this order."""
        return RankMixer(self, sum(feature_dims.values()))


class RankMixer(nn.Module):
    """Features -> T tokens -> blocks -> mean over tokens (RankMixer section 3, Eq. 1).

    Shape:
        x_BF -> (B, D).
    """

    def __init__(self, config: RankMixerConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.dim
        self.tokenize = FeatureTokens(in_dim, num_tokens=config.num_tokens, dim=config.dim)
        self.blocks = nn.ModuleList(
            RankMixerBlock(
                config.dim,
                PerTokenFFN(
                    num_tokens=config.num_tokens,
                    dim=config.dim,
                    hidden_dim=int(config.dim * config.expansion),
                ),
            )
            for _ in range(config.num_layers)
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        x_BTD = self.tokenize(x_BF)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD.mean(dim=1)
