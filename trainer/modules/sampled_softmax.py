"""Cross-entropy over many codes, estimated from a few of them.

Legend: P rows, L levels, K codes of a level, D dim, S sampled codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_cross_entropy(
    hidden_LPD: Tensor,
    codes_LP: Tensor,
    weight_LKD: Tensor,
    bias_LK: Tensor,
    *,
    num_sampled: int,
) -> Tensor:
    """Cross-entropy with the softmax's denominator estimated from a sample; summed, scalar.

    S codes a level are drawn with replacement, half of the probability even over the codes and
    half as the batch's own codes are. Each draw's logit is lowered by log(S q) (log-Q correction)
    and draws of the right code are left out, so the denominator's expectation is the exact one.

    Args:
        hidden_LPD: normed outputs.
        codes_LP: int64 right codes.
        weight_LKD: heads.
        bias_LK: heads' biases.
        num_sampled: S.
    """
    num_levels, num_codes, _ = weight_LKD.shape
    num_rows = codes_LP.shape[1]
    counts_LK = torch.zeros(num_levels, num_codes, device=codes_LP.device)
    counts_LK.scatter_add_(1, codes_LP, torch.ones_like(codes_LP, dtype=counts_LK.dtype))
    share = 0.5 if num_rows else 0.0
    proposal_LK = (1 - share) / num_codes + share * counts_LK / max(1, num_rows)
    drawn_LS = torch.multinomial(proposal_LK, num_sampled, replacement=True)
    level_L1 = torch.arange(num_levels, device=codes_LP.device).unsqueeze(1)
    right_LP = (hidden_LPD * weight_LKD[level_L1, codes_LP]).sum(-1).float()
    right_LP = right_LP + bias_LK[level_L1, codes_LP]
    correction_LS = (num_sampled * proposal_LK.gather(1, drawn_LS)).log()
    drawn_LPS = torch.bmm(hidden_LPD, weight_LKD[level_L1, drawn_LS].transpose(1, 2)).float()
    drawn_LPS = drawn_LPS + (bias_LK.gather(1, drawn_LS) - correction_LS).unsqueeze(1)
    drawn_LPS = drawn_LPS.masked_fill(drawn_LS.unsqueeze(1) == codes_LP.unsqueeze(2), float("-inf"))
    total_LP = torch.cat([right_LP.unsqueeze(2), drawn_LPS], dim=2).logsumexp(2)
    return (total_LP - right_LP).sum()
