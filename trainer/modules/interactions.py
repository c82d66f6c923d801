"""Four ways in which the vectors of an impression interact; DHEN's layers join them.

Legend: B impressions, T tokens in, L tokens out, D token dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.modules.cross import CrossLayer
from trainer.modules.mlp import mlp
from trainer.modules.transformer_block import TransformerBlock


def combine_tokens(weight_LT: Tensor, x_BTD: Tensor) -> Tensor:
    """`W X` of each impression: (L, T) and (B, T, D) -> (B, L, D).

    One small product an impression; a linear layer over T would first have to move T behind D.
    """
    return torch.bmm(weight_LT.expand(x_BTD.shape[0], -1, -1), x_BTD)


class CompressTokens(nn.Module):
    """Each of L tokens is a linear combination of T tokens: `W X`, W of shape (L, T).

    DHEN's linear interaction module, and WuKong's linear compression block.
    """

    def __init__(self, num_tokens: int, num_out: int) -> None:
        super().__init__()
        self.combine = nn.Linear(num_tokens, num_out, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, L, D)."""
        return combine_tokens(self.combine.weight, x_BTD)


class DotInteraction(nn.Module):
    """The inner products of all pairs of tokens through an MLP, as in DLRM (DHEN section 3.2.1)."""

    def __init__(self, num_tokens: int, num_out: int, *, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_out = num_out
        pairs = num_tokens * (num_tokens - 1) // 2
        self.mlp = mlp(pairs, (hidden_dim,), num_out * dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, L, D)."""
        num_tokens = x_BTD.shape[1]
        products_BTT = torch.bmm(x_BTD, x_BTD.transpose(1, 2))
        left, right = torch.triu_indices(num_tokens, num_tokens, 1, device=x_BTD.device)
        out_BLD: Tensor = self.mlp(products_BTT[:, left, right]).unflatten(1, (self.num_out, -1))
        return out_BLD


class CrossInteraction(nn.Module):
    """DCN-v2's cross of all tokens side by side with themselves, then L combinations."""

    def __init__(self, num_tokens: int, num_out: int, *, dim: int, rank: int | None = None) -> None:
        super().__init__()
        self.cross = CrossLayer(num_tokens * dim, rank=rank)
        self.compress = CompressTokens(num_tokens, num_out)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, L, D)."""
        x_BF = x_BTD.flatten(1)
        out_BLD: Tensor = self.compress(self.cross(x_BF, x_BF).view_as(x_BTD))
        return out_BLD


class AttentionInteraction(nn.Module):
    """A transformer block over the tokens, then L combinations."""

    def __init__(
        self, num_tokens: int, num_out: int, *, dim: int, num_heads: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.block = TransformerBlock(dim=dim, num_heads=num_heads, hidden_dim=hidden_dim)
        self.compress = CompressTokens(num_tokens, num_out)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, L, D)."""
        out_BLD: Tensor = self.compress(self.block(x_BTD))
        return out_BLD
