"""u2t: user-item cross features at the granularity of tokens (DIG section 3.3).

Legend: B impressions, G impressions of all ranks, L levels, C width of cross features (d_c).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.modules.over_ranks import own_rank, rows_of_all_ranks

Scope = Literal["user", "batch"]
"""Whose impressions a bucket's mean is over. `user`: those of the impression's user, as Eq. 13
reads (c_{u,v'} has the same u). `batch`: all of the batch, as section 4.1 counts (about 180 buckets
of 11 items in a batch of 2,048)."""


class BucketMeans(NamedTuple):
    """The statistic of a batch.

    Attributes:
        u2t_BLC: mean cross features of the impression's bucket at each level, without gradient.
        group_size_L: impressions a group, on average.
    """

    u2t_BLC: Tensor
    group_size_L: Tensor


@torch.no_grad()
def bucket_means(
    cross_BC: Tensor, codes_BL: Tensor, user_B: Tensor, *, num_codes: int, scope: Scope
) -> BucketMeans:
    """`u2t^(l)` of Eq. 13 over the impressions of all ranks.

    Args:
        cross_BC: cross features of this rank's impressions.
        codes_BL: int64 codes of their items.
        user_B: int64 ids of their users.
        num_codes: K.
        scope: see :data:`Scope`.
    """
    num_rows = len(codes_BL)
    cross_GC = rows_of_all_ranks(cross_BC.float())
    codes_GL = rows_of_all_ranks(codes_BL)
    owner_G = torch.zeros_like(codes_GL[:, 0])
    if scope == "user":
        owner_G = torch.unique(rows_of_all_ranks(user_B), return_inverse=True)[1]
    own = slice(own_rank() * num_rows, (own_rank() + 1) * num_rows)
    means, sizes = [], []
    for code_G in codes_GL.T:
        groups, group_G, count = torch.unique(
            owner_G * num_codes + code_G, return_inverse=True, return_counts=True
        )
        sums = cross_GC.new_zeros(len(groups), cross_GC.shape[1]).index_add(0, group_G, cross_GC)
        means.append((sums / count.unsqueeze(1)).index_select(0, group_G[own]))
        sizes.append(cross_GC.new_tensor(len(code_G) / len(groups)))
    return BucketMeans(torch.stack(means, dim=1), torch.stack(sizes))


def prefix_means(u2t_BLC: Tensor) -> Tensor:
    """`u2t^(1:l)`: the mean of `u2t^(1)` to `u2t^(l)`, so that its width stays d_c."""
    number_L1 = torch.arange(1, u2t_BLC.shape[-2] + 1, device=u2t_BLC.device).unsqueeze(1)
    return u2t_BLC.cumsum(dim=-2) / number_L1


def distillation_loss(predicted_BLC: Tensor, teacher_BLC: Tensor) -> Tensor:
    """L_u2t (Eq. 15), the mean over impressions; nothing flows into the teacher."""
    squares_BL = (predicted_BLC - teacher_BLC.detach()).square().sum(dim=2)
    return squares_BL.mean()
