"""Attention in which a context is mutually visible and the tokens after it are causal.

Legend: B rows, C context tokens, T tokens of this call, S tokens of earlier calls, D dim, H heads,
h dim of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class KeyValues(NamedTuple):
    """What later tokens read of earlier ones in one block.

    Attributes:
        key_BHTh: one key a token.
        value_BHTh: one value a token.
    """

    key_BHTh: Tensor
    value_BHTh: Tensor

    def take(self, rows: Tensor) -> KeyValues:
        """Those of some rows, in the order of `rows` (int64)."""
        return KeyValues(self.key_BHTh.index_select(0, rows), self.value_BHTh.index_select(0, rows))


def semi_causal_mask(
    num_context: int, num_tokens: int, *, device: torch.device | None = None
) -> Tensor:
    """Who may look at whom (TRM section 3.3), bool (C + T, C + T); True: row looks at column.

    Context tokens see each other and nothing else; each token after them sees the whole context,
    the tokens before it and itself.
    """
    total = num_context + num_tokens
    mask = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    mask[:num_context, :num_context] = True
    return mask


class SemiCausalBlock(nn.Module):
    """A pre-norm transformer block that can go on from what an earlier call has seen.

    Since the context never looks at the tokens, it can be passed through the blocks once, and the
    tokens afterwards with the context's keys and values as `past`: together that is one pass under
    `semi_causal_mask`. Beam search goes on in the same way, a token at a time.

    Args:
        dim: D.
        num_heads: H.
        expansion: hidden dim of the feed-forward network over D.

    Raises:
        ValueError: when D can't be cut into H heads.

    Shape:
        x_BTD, mask_TS (T, S + T) or None for "sees everything", past of S tokens or None ->
        (B, T, D) and the keys and values of S + T tokens.
    """

    def __init__(self, *, dim: int, num_heads: int, expansion: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"semi-causal block: dim ({dim}) must be a multiple of num_heads ({num_heads})"
            )
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        # A bias of the keys changes nothing: the softmax takes it out again.
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, int(dim * expansion))
        self.ffn_out = nn.Linear(int(dim * expansion), dim)

    def forward(
        self, x_BTD: Tensor, mask_TS: Tensor | None = None, past: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Attend, then the feed-forward network, each with a residual."""
        num_tokens, dim = x_BTD.shape[1:]
        heads_BT3Hh = self.query_key_value(self.attention_norm(x_BTD)).unflatten(
            -1, (3, self.num_heads, dim // self.num_heads)
        )
        query_BHTh, key_BHTh, value_BHTh = heads_BT3Hh.permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            key_BHTh = torch.cat([past.key_BHTh, key_BHTh], dim=2)
            value_BHTh = torch.cat([past.value_BHTh, value_BHTh], dim=2)
        seen_BHTh = scaled_dot_product_attention(
            query_BHTh, key_BHTh, value_BHTh, attn_mask=mask_TS
        )
        seen_BTD = seen_BHTh.transpose(1, 2).reshape(-1, num_tokens, dim)
        x_BTD = x_BTD + self.attention_out(seen_BTD)
        x_BTD = x_BTD + self.ffn_out(gelu(self.ffn_in(self.ffn_norm(x_BTD))))
        return x_BTD, KeyValues(key_BHTh, value_BHTh)
