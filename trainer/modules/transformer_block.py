"""A pre-norm transformer block, with weights that tokens share or that each token has alone.

Legend: B impressions, T tokens, D token dim, H heads, d = D / H.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu

from trainer.modules.attention import attend
from trainer.modules.per_token import PerTokenLinear, TokenNorm


class TransformerBlock(nn.Module):
    """`x + attention(norm(x))`, then `x + network(norm(x))`.

    Args:
        dim: D.
        num_heads: H; divides `dim`.
        hidden_dim: of the feed-forward network.
        num_tokens: T when every token has projections and a network of its own; None when all
            tokens share them.

    Shape:
        (B, T, D) -> (B, T, D).
    """

    def __init__(
        self, *, dim: int, num_heads: int, hidden_dim: int, num_tokens: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        norm = nn.LayerNorm if num_tokens is None else TokenNorm
        self.attention_norm = norm(dim)
        # Shared, a bias of keys would move all scores of a query alike, which softmax undoes.
        self.query_key_value = (
            nn.Linear(dim, 3 * dim, bias=False)
            if num_tokens is None
            else PerTokenLinear(num_tokens, dim, 3 * dim)
        )
        self.attention_out = _linear(num_tokens, dim, dim)
        self.ffn_norm = norm(dim)
        self.ffn_in = _linear(num_tokens, dim, hidden_dim)
        self.ffn_out = _linear(num_tokens, hidden_dim, dim)

    def forward(self, x_BTD: Tensor, mask_TT: Tensor | None = None) -> Tensor:
        """Every token attends to every token, or to those where `mask_TT` (bool) is true."""
        qkv_BT3D = self.query_key_value(self.attention_norm(x_BTD))
        q_BHTd, k_BHTd, v_BHTd = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in qkv_BT3D.chunk(3, dim=2)
        )
        attended_BHTd = attend(q_BHTd, k_BHTd, v_BHTd, mask_TT)
        x_BTD = x_BTD + self.attention_out(attended_BHTd.transpose(1, 2).flatten(2))
        out_BTD: Tensor = x_BTD + self.ffn_out(gelu(self.ffn_in(self.ffn_norm(x_BTD))))
        return out_BTD


def check_heads(name: str, dim: int, num_heads: int) -> None:
    """Check that `dim` can be cut into heads.

    Raises:
        ValueError: naming both.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{name}: dim ({dim}) must be a multiple of num_heads ({num_heads})")


def _linear(num_tokens: int | None, in_dim: int, out_dim: int) -> nn.Module:
    if num_tokens is None:
        return nn.Linear(in_dim, out_dim)
    return PerTokenLinear(num_tokens, in_dim, out_dim)
