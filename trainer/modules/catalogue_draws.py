"""Random items and rows that do not depend on how a batch is spread.

Legend: B impressions.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SHARES = 1 << 20


def drawn_items(row_B: Tensor, *, step: Tensor, number: int, num_items: int) -> Tensor:
    """Items of the whole catalogue for each impression, int64 (B, `number`).

    They follow from the impression's place in the log and the step alone, so every division of a
    batch into ranks draws the same.
    """
    x = row_B.unsqueeze(1) * -7046029254386353131 + step * 2545402303173240129
    return _mixed(x + torch.arange(number, device=row_B.device) * 6364136223846793005) % num_items


def drawn_rows(row_B: Tensor, *, share: float) -> Tensor:
    """Which rows are of a share of the log, bool (B,): at any time the same, more for more."""
    return _mixed(row_B * -7046029254386353131) % _SHARES < share * _SHARES


def _mixed(x: Tensor) -> Tensor:
    """Integers with every bit mixed, not negative."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor  # splitmix64's mixing
    return (x ^ ((x >> 31) & (2**33 - 1))) & (2**63 - 1)
