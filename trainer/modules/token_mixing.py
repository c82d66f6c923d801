"""RankMixer's two blocks: multi-head token mixing and per-token feed-forward networks.

Legend: B impressions, T tokens, D token dim, H heads (H = T), K hidden dim of a token's network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from trainer.modules.per_token import TokenNorm


def mix_tokens(x_BTD: Tensor) -> Tensor:
    """Parameter-free token mixing (RankMixer section 3.3.1, H = T).

    Each token is cut into T heads; new token h is head h of every token, side by side.

    Shape:
        (B, T, D) -> (B, T, D); D must be a multiple of T.
    """
    num_rows, num_tokens, dim = x_BTD.shape
    x_BTHd = x_BTD.view(num_rows, num_tokens, num_tokens, dim // num_tokens)
    # Memory stays ordered by token, see trainer/modules/per_token.py.
    x_HBD = x_BTHd.permute(2, 0, 1, 3).reshape(num_tokens, num_rows, dim)
    return x_HBD.transpose(0, 1)


class PerTokenFFN(nn.Module):
    """A two-layer feed-forward network of its own for every token (RankMixer section 3.3.2).

    Shape:
        (B, T, D) -> (B, T, D).
    """

    def __init__(self, *, num_tokens: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.weight_in_TDK = nn.Parameter(torch.empty(num_tokens, dim, hidden_dim))
        self.bias_in_TK = nn.Parameter(torch.empty(num_tokens, hidden_dim))
        self.weight_out_TKD = nn.Parameter(torch.empty(num_tokens, hidden_dim, dim))
        self.bias_out_TD = nn.Parameter(torch.empty(num_tokens, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each token's network as `torch.nn.Linear` would."""
        for weight, bias in (
            (self.weight_in_TDK, self.bias_in_TK),
            (self.weight_out_TKD, self.bias_out_TD),
        ):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply token t's network to token t."""
        hidden_TBK = torch.baddbmm(
            self.bias_in_TK.unsqueeze(1), x_BTD.transpose(0, 1), self.weight_in_TDK
        )
        out_TBD = torch.baddbmm(
            self.bias_out_TD.unsqueeze(1), gelu(hidden_TBK), self.weight_out_TKD
        )
        return out_TBD.transpose(0, 1)


class RankMixerBlock(nn.Module):
    """Token mixing, then per-token networks, each with residual and LayerNorm (RankMixer Eq. 1).

    Args:
        dim: D.
        ffn: the per-token networks: :class:`PerTokenFFN`, or a mixture of experts.
    """

    def __init__(self, dim: int, ffn: nn.Module) -> None:
        super().__init__()
        self.mixing_norm = TokenNorm(dim)
        self.ffn = ffn
        self.ffn_norm = TokenNorm(dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = self.mixing_norm(mix_tokens(x_BTD) + x_BTD)
        out_BTD: Tensor = self.ffn_norm(self.ffn(x_BTD) + x_BTD)
        return out_BTD
