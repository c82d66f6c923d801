"""Attention among a handful of tokens.

Legend: B rows, H heads, T queries, S keys, d dim of a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

FEW_TOKENS = 64
"""Keys up to which scores are formed outright on a CPU."""


def attend(
    query_BHTd: Tensor, key_BHSd: Tensor, value_BHSd: Tensor, mask_TS: Tensor | None = None
) -> Tensor:
    """`softmax(Q K^T / sqrt(d)) V`; a query sees all keys, or those where `mask_TS` is true.

    Fused kernels keep the scores out of memory, which pays for long sequences. The tokens of an
    impression are few, and with 16 of them torch's CPU kernel takes eight times as long in its
    backward pass as two batched products and a softmax do.

    Shape:
        (B, H, T, d), twice (B, H, S, d), mask bool and broadcastable to (B, H, T, S) ->
        (B, H, T, d).
    """
    if key_BHSd.device.type != "cpu" or key_BHSd.shape[2] > FEW_TOKENS:
        return scaled_dot_product_attention(query_BHTd, key_BHSd, value_BHSd, attn_mask=mask_TS)
    scores_BHTS = (query_BHTd * query_BHTd.shape[3] ** -0.5) @ key_BHSd.transpose(2, 3)
    if mask_TS is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask_TS, float("-inf"))
    return scores_BHTS.softmax(dim=3) @ value_BHSd
