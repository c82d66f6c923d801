"""The user's history as the candidate sees it.

Legend: B impressions, U distinct items, T history positions of all impressions, D item dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TargetAttention(nn.Module):
    """One attention step from the candidate to the history items (as in DIN and its successors).

    Keys and values are computed once per distinct item of the batch and gathered by position, and
    no row is padded: the cost grows with the number of history positions T, not with B times the
    longest history.

    Args:
        dim: D of item vectors.

    Shape:
        item_UD, candidate_B, history_T, history_offsets (B + 1) -> (B, D); zeros for a row without
        history.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.scale = dim**-0.5

    def forward(
        self, item_UD: Tensor, candidate_B: Tensor, history_T: Tensor, history_offsets: Tensor
    ) -> Tensor:
        """Attend from each candidate to its row's history."""
        num_rows = candidate_B.shape[0]
        row_T = torch.repeat_interleave(
            torch.arange(num_rows, device=history_T.device),
            history_offsets.diff(),
            output_size=history_T.shape[0],
        )
        query_BD = self.query(item_UD[candidate_B])
        key_TD = self.key(item_UD).index_select(0, history_T)
        score_T = (query_BD.index_select(0, row_T) * key_TD).sum(-1).float() * self.scale
        weight_T = softmax_by_row(score_T, row_T, num_rows)
        value_TD = self.value(item_UD).index_select(0, history_T)
        out_BD = value_TD.new_zeros(num_rows, value_TD.shape[1])
        return out_BD.index_add(0, row_T, weight_T.to(value_TD.dtype).unsqueeze(-1) * value_TD)


def softmax_by_row(score_T: Tensor, row_T: Tensor, num_rows: int) -> Tensor:
    """Softmax over the positions of each row; `row_T` names each position's row."""
    highest_B = score_T.new_full((num_rows,), float("-inf"))
    highest_B = highest_B.scatter_reduce(0, row_T, score_T.detach(), "amax")
    exponent_T = (score_T - highest_B.index_select(0, row_T)).exp()
    total_B = exponent_T.new_zeros(num_rows).index_add(0, row_T, exponent_T)
    return exponent_T / total_B.index_select(0, row_T)
