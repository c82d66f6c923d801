"""Linear layers with weights of their own for every token, as one batched matrix product.

Shapes are (B, T, D) everywhere, but memory is ordered by token, then impression: a batched product
reads and writes its matrices side by side, so that neither pass has to copy them into that order.

Legend: B impressions, T tokens, I input dim, O output dim, F features side by side, P features of
a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class PerTokenLinear(nn.Module):
    """A linear layer of its own for every token.

    Args:
        num_tokens: T.
        in_dim: I.
        out_dim: O.

    Shape:
        (B, T, I) -> (B, T, O).
    """

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_TIO = nn.Parameter(torch.empty(num_tokens, in_dim, out_dim))
        self.bias_TO = nn.Parameter(torch.empty(num_tokens, out_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each token's layer as `torch.nn.Linear` would."""
        bound = 1 / math.sqrt(self.weight_TIO.shape[1])
        nn.init.uniform_(self.weight_TIO, -bound, bound)
        nn.init.uniform_(self.bias_TO, -bound, bound)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Apply token t's layer to token t."""
        out_TBO = torch.baddbmm(self.bias_TO.unsqueeze(1), x_BTI.transpose(0, 1), self.weight_TIO)
        return out_TBO.transpose(0, 1)


class TokenNorm(nn.LayerNorm):
    """A LayerNorm over D, shared by all tokens, that leaves memory ordered by token.

    Shape:
        (B, T, D) -> (B, T, D).
    """

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalise each token of each impression."""
        return super().forward(x_BTD.transpose(0, 1)).transpose(0, 1)


class FeatureTokens(nn.Module):
    """Features side by side -> T tokens of one dim (RankMixer section 3.2).

    The feature vector is cut into T equal parts (the last one zero-padded), each of which a linear
    layer of its own projects to a token. Towers that need vectors of one dim (factorization
    machines, attention) read features through it too.

    Args:
        in_dim: F.
        num_tokens: T.
        dim: of a token.

    Shape:
        (B, F) -> (B, T, dim).
    """

    def __init__(self, in_dim: int, *, num_tokens: int, dim: int) -> None:
        super().__init__()
        part = -(-in_dim // num_tokens)
        self.num_tokens = num_tokens
        self.padding = part * num_tokens - in_dim
        self.project = PerTokenLinear(num_tokens, part, dim)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Cut and project."""
        parts_BTP = pad(x_BF, (0, self.padding)).unflatten(1, (self.num_tokens, -1))
        tokens: Tensor = self.project(parts_BTP)
        return tokens
