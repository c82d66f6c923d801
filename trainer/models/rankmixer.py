"""RankMixer: token mixing and per-token feed-forward networks as the interaction architecture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.modules.token_mixing import RankMixerBlock


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
    """Features -> T tokens -> blocks -> mean over tokens.

    The concatenated feature vector is cut into T equal parts (the last one zero-padded), each of
    which a linear layer of its own projects to a token (RankMixer section 3.2).

    Shape:
        x_BF -> (B, D).
    """

    def __init__(self, config: RankMixerConfig, in_dim: int) -> None:
        super().__init__()
        self.config = config
        self.out_dim = config.dim
        part = -(-in_dim // config.num_tokens)
        self.padding = part * config.num_tokens - in_dim
        self.tokenize = nn.ModuleList(nn.Linear(part, config.dim) for _ in range(config.num_tokens))
        self.blocks = nn.ModuleList(
            RankMixerBlock(
                num_tokens=config.num_tokens,
                dim=config.dim,
                hidden_dim=int(config.dim * config.expansion),
            )
            for _ in range(config.num_layers)
        )

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        parts = pad(x_BF, (0, self.padding)).chunk(self.config.num_tokens, dim=1)
        x_BTD = torch.stack(
            [linear(part) for linear, part in zip(self.tokenize, parts, strict=True)], dim=1
        )
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD.mean(dim=1)
