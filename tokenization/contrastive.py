"""The contrastive loss of TRM Eq. 3, with negatives from the batches of all ranks.

Shape suffixes: B pairs of a rank's batch, G pairs of all ranks, H dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in the order of ranks; gradients come back summed over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        ctx.size = len(rows)
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous()
        dist.all_reduce(whole)
        start = dist.get_rank() * ctx.size
        return whole[start : start + ctx.size]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows `(B, H)` of all ranks as `(G, H)`, through which gradients flow; equal B on all ranks.

    Without process group the rows themselves.
    """
    if not dist.is_initialized():
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def contrastive_loss(
    a_BH: Tensor, b_BH: Tensor, *, temperature: float, same_BG: Tensor | None = None
) -> Tensor:
    """InfoNCE over cosine similarity (TRM Eq. 3), mean over this rank's pairs.

    Args:
        a_BH: one side of each pair.
        b_BH: the other side; those of all ranks' pairs are the candidates.
        temperature: tau, above 0.
        same_BG: True where candidate g is no negative of pair b, because it is the same item as
            its positive or as a; the positive itself is never left out.

    Returns:
        a scalar.
    """
    a_BH, b_BH = nn.functional.normalize(a_BH, dim=1), nn.functional.normalize(b_BH, dim=1)
    logits_BG = a_BH @ gather_rows(b_BH).T / temperature
    start = dist.get_rank() * len(a_BH) if dist.is_initialized() else 0
    target_B = torch.arange(start, start + len(a_BH), device=a_BH.device)
    if same_BG is not None:
        left_out_BG = same_BG.scatter(1, target_B.unsqueeze(1), False)
        logits_BG = logits_BG.masked_fill(left_out_BG, float("-inf"))
    return nn.functional.cross_entropy(logits_BG, target_B)
