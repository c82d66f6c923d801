"""u2t where no impression tells it: in retrieval, and in the samples that retrieval learns from.

Legend: B impressions, L levels, K codes, C width of cross features (d_c), E width of e_u, D dim of
SID embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer.modules.mlp import mlp
from trainer.modules.over_ranks import sum_over_ranks

RetrievalU2T = Literal["mlp", "mean", "none"]
"""`mlp`: MLP_u2t (Eq. 14). `mean`: the mean cross features of a code's training impressions
(Ablation 3). `none`: nothing (Table 6)."""


class TokenCross(nn.Module, ABC):
    """u2t of every level, from what is known in retrieval."""

    num_levels: int

    @abstractmethod
    def level(self, level: int, user: Tensor, prefix: Tensor, code: Tensor) -> Tensor:
        """u2t^(l), (..., C) from e_u (..., E), prefixes (..., D) and their last codes (...)."""

    def forward(self, user: Tensor, prefixes: Tensor, codes: Tensor) -> Tensor:
        """All levels: (..., E), (..., L, D) and codes (..., L) -> (..., L, C)."""
        levels = [
            self.level(level, user, prefixes[..., level, :], codes[..., level])
            for level in range(self.num_levels)
        ]
        return torch.stack(levels, dim=-2)

    def follow(self, cross_BC: Tensor, codes_BL: Tensor) -> None:
        """Take note of a step's impressions, where that is how it learns."""


class TokenPredictor(TokenCross):
    """MLP_u2t (Eq. 14): one small network a level from `[e_u; e_sid^(1:l)]` to d_c.

    Args:
        user_dim: E.
        sid_dim: D.
        cross_dim: C.
        num_levels: L.
        hidden_dim: of each.
    """

    def __init__(
        self, *, user_dim: int, sid_dim: int, cross_dim: int, num_levels: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.levels = nn.ModuleList(
            mlp(user_dim + sid_dim, (hidden_dim,), cross_dim) for _ in range(num_levels)
        )

    def level(self, level: int, user: Tensor, prefix: Tensor, code: Tensor) -> Tensor:
        """As it is predicted; the code speaks through the prefix alone."""
        network = self.levels[level]
        assert isinstance(network, nn.Sequential)
        first = network[0]
        assert isinstance(first, nn.Linear)
        of_user, of_prefix = first.weight.split([user.shape[-1], prefix.shape[-1]], dim=1)
        # A user has many prefixes: their part of the product is computed once.
        x = linear(prefix, of_prefix, first.bias) + linear(user, of_user)
        for layer in list(network)[1:]:
            x = layer(x)
        return x.float()


class TokenMeans(TokenCross):
    """The mean cross features of each code's training impressions, over all users and ranks.

    A moving average, since codes change their items; a code's first step gives it its first mean.

    Args:
        num_levels: L.
        num_codes: K.
        cross_dim: C.
        decay: of the average.
    """

    mean_LKC: Tensor
    is_known_LK: Tensor

    def __init__(self, *, num_levels: int, num_codes: int, cross_dim: int, decay: float) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.decay = decay
        self.register_buffer("mean_LKC", torch.zeros(num_levels, num_codes, cross_dim))
        self.register_buffer("is_known_LK", torch.zeros(num_levels, num_codes))

    def level(self, level: int, user: Tensor, prefix: Tensor, code: Tensor) -> Tensor:
        """The same for every user."""
        return self.mean_LKC[level][code]

    @torch.no_grad()
    def follow(self, cross_BC: Tensor, codes_BL: Tensor) -> None:
        """Move each code's mean toward that of the step's impressions."""
        num_levels, num_codes, width = self.mean_LKC.shape
        at = codes_BL + num_codes * torch.arange(num_levels, device=codes_BL.device)
        values_BC1 = torch.cat([cross_BC.float(), cross_BC.new_ones(len(cross_BC), 1)], dim=1)
        total = values_BC1.new_zeros(num_levels * num_codes, width + 1)
        for at_B in at.T:
            total.index_add_(0, at_B, values_BC1)
        total = sum_over_ranks(total).view(num_levels, num_codes, width + 1)
        is_here_LK1 = total[..., -1:] > 0
        now_LKC = total[..., :-1] / total[..., -1:].clamp_min(1)
        kept_LK1 = (self.decay * self.is_known_LK).unsqueeze(2)
        moved_LKC = now_LKC + kept_LK1 * (self.mean_LKC - now_LKC)
        self.mean_LKC.copy_(torch.where(is_here_LK1, moved_LKC, self.mean_LKC))
        self.is_known_LK.copy_(torch.maximum(self.is_known_LK, is_here_LK1.squeeze(2).float()))


class NoTokenCross(TokenCross):
    """Nothing is known of a token.

    Args:
        num_levels: L.
        cross_dim: C.
    """

    def __init__(self, *, num_levels: int, cross_dim: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.cross_dim = cross_dim

    def level(self, level: int, user: Tensor, prefix: Tensor, code: Tensor) -> Tensor:
        """Zeros."""
        return prefix.new_zeros(*prefix.shape[:-1], self.cross_dim, dtype=torch.float32)
