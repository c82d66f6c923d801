"""The gen-tokens' way into the generative transformer, and one head a level out of it (TRM 3.3).

Legend: B rows, P positives, T tokens, L levels, K codes of a level, d table dim, D dim of the
transformer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GenTokens(nn.Module):
    """What the generative loss alone trains: the tokens' way in, and one head a level.

    Args:
        dim: D.
        token_dim: d.
        num_levels: L.
        num_codes: K.
    """

    def __init__(self, *, dim: int, token_dim: int, num_levels: int, num_codes: int) -> None:
        super().__init__()
        self.project = nn.Linear(token_dim, dim)
        self.in_norm = nn.LayerNorm(dim)
        self.position = nn.Embedding(num_levels, dim)
        self.out_norm = nn.LayerNorm(dim)
        self.weight_LKD = nn.Parameter(torch.empty(num_levels, num_codes, dim))
        self.bias_LK = nn.Parameter(torch.empty(num_levels, num_codes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each level's head as `torch.nn.Linear` would."""
        bound = 1 / math.sqrt(self.weight_LKD.shape[2])
        nn.init.uniform_(self.weight_LKD, -bound, bound)
        nn.init.uniform_(self.bias_LK, -bound, bound)

    def start(self, num_rows: int) -> Tensor:
        """The start token of each row (B, 1, D): the first position, with nothing in it."""
        return self.position.weight[0].expand(num_rows, 1, -1)

    def follow(self, gen_BTd: Tensor, *, level: int) -> Tensor:
        """Inputs (B, T, D) that stand for the gen-tokens of level `level` and those after it."""
        num_tokens = gen_BTd.shape[1]
        position_TD = self.position.weight[level + 1 : level + 1 + num_tokens]
        return self.in_norm(self.project(gen_BTd)) + position_TD

    def embed(self, gen_BTd: Tensor) -> Tensor:
        """Start token and gen-tokens from level 0 on (B, 1 + T, D)."""
        return torch.cat([self.start(gen_BTd.shape[0]), self.follow(gen_BTd, level=0)], dim=1)

    def logits(self, hidden_LPD: Tensor) -> Tensor:
        """Logits of every code (L, P, K) from normed outputs."""
        return torch.baddbmm(self.bias_LK.unsqueeze(1), hidden_LPD, self.weight_LKD.transpose(1, 2))

    def level_logits(self, out_BD: Tensor, level: int) -> Tensor:
        """Logits (B, K) of one level from outputs of the last block."""
        return nn.functional.linear(
            self.out_norm(out_BD), self.weight_LKD[level], self.bias_LK[level]
        )
