"""Sums and rows over all ranks, inside a forward pass; alone, a process is all there is."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def num_ranks() -> int:
    """Processes of the job; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    """This process among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of every rank's tensor of one shape; its gradient is summed over ranks too."""
    if num_ranks() == 1:
        return value
    total: Tensor = all_reduce(value)
    return total


@torch.no_grad()
def rows_of_all_ranks(rows_M: Tensor) -> Tensor:
    """Every rank's rows, rank after rank; ranks have equally many. Carries no gradient."""
    if num_ranks() == 1:
        return rows_M
    gathered = [torch.empty_like(rows_M) for _ in range(num_ranks())]
    dist.all_gather(gathered, rows_M.contiguous())
    return torch.cat(gathered)
