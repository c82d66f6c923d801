"""Random items of the whole catalogue that do not depend on how a batch is spread.

Legend: B impressions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def drawn_items(row_B: Tensor, *, step: Tensor, number: int, num_items: int) -> Tensor:
    """Items of the whole catalogue for each impression, int64 (B, `number`).

    They follow from the impression's place in the log and the step alone, so every division of a
    batch into ranks draws the same.
    """
    x = row_B.unsqueeze(1) * -7046029254386353131 + step * 2545402303173240129
    x = x + torch.arange(number, device=row_B.device) * 6364136223846793005
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor  # splitmix64's mixing
    return (x ^ ((x >> 31) & (2**33 - 1))) % num_items
