"""The user's history as the candidate sees it.

Legend: B impressions, U distinct items, T history positions of all impressions, K kinds of
feedback, D item dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

_NEVER = -1e30


class Past(NamedTuple):
    """Histories of B rows, padded to the longest, T positions.

    Attributes:
        key_BTD, value_BTD: of each history item.
        is_there_BT: bool; False where a row's history has ended.
    """

    key_BTD: Tensor
    value_BTD: Tensor
    is_there_BT: Tensor


class FoldedPast(NamedTuple):
    """Histories of B rows for very many targets each; see :meth:`TargetAttention.fold`.

    Attributes:
        score_BDT: from a target to its scores.
        bias_B1T: added to them.
        value_BTD: zeros where a row's history has ended.
    """

    score_BDT: Tensor
    bias_B1T: Tensor
    value_BTD: Tensor


class TargetAttention(nn.Module):
    """One attention step from the candidate to the history items (as in DIN and its successors).

    Each kind of feedback has a key and a value projection of its own, so that an item that the
    user skipped can speak against what an item that the user liked speaks for. Keys and values are
    computed once per distinct item of the batch and kind, and no row is padded: the cost grows with
    the number of history positions T, not with B times the longest history.

    Args:
        dim: D of item vectors.
        num_kinds: K kinds of feedback.

    Shape:
        item_UD, candidate_B, history_T, history_kind_T, history_offsets (B + 1) -> (B, D); zeros
        for a row without history.
    """

    def __init__(self, dim: int, *, num_kinds: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_kinds = num_kinds
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, num_kinds * dim, bias=False)
        self.value = nn.Linear(dim, num_kinds * dim, bias=False)

    def forward(
        self,
        item_UD: Tensor,
        candidate_B: Tensor,
        history_T: Tensor,
        history_kind_T: Tensor,
        history_offsets: Tensor,
    ) -> Tensor:
        """Attend from each candidate to its row's history."""
        num_rows = candidate_B.shape[0]
        row_T = torch.repeat_interleave(
            torch.arange(num_rows, device=history_T.device),
            history_offsets.diff(),
            output_size=history_T.shape[0],
        )
        at_T = history_T * self.num_kinds + history_kind_T
        query_BD = self.query(item_UD[candidate_B]).index_select(0, row_T)
        key_TD = self.key(item_UD).view(-1, self.dim).index_select(0, at_T)
        score_T = (query_BD * key_TD).sum(-1).float() * self.dim**-0.5
        return embedding_bag(
            at_T,
            self.value(item_UD).view(-1, self.dim).float(),
            history_offsets[:-1],
            mode="sum",
            per_sample_weights=softmax_by_row(score_T, row_T, num_rows),
        )

    def remember(
        self, item_UD: Tensor, history_T: Tensor, history_kind_T: Tensor, history_offsets: Tensor
    ) -> Past:
        """Keys and values of each row's history, for :meth:`recall`."""
        at_T = history_T * self.num_kinds + history_kind_T
        length_B = history_offsets.diff()
        longest = max(1, int(length_B.max())) if len(length_B) else 1
        place = torch.arange(longest, device=at_T.device)
        is_there_BT = place < length_B.unsqueeze(1)
        at_BT = at_T.new_zeros(is_there_BT.shape).masked_scatter(is_there_BT, at_T)
        key_ND = self.key(item_UD).view(-1, self.dim)
        value_ND = self.value(item_UD).view(-1, self.dim)
        return Past(embedding(at_BT, key_ND), embedding(at_BT, value_ND), is_there_BT)

    def recall(self, target_BSD: Tensor, past: Past) -> Tensor:
        """As `forward`, from several targets of each row: (B, S, D) -> (B, S, D)."""
        score_BST = self.query(target_BSD) @ past.key_BTD.transpose(1, 2) * self.dim**-0.5
        is_there_B1T = past.is_there_BT.unsqueeze(1)
        # Finite, since a row without history would otherwise be a softmax over nothing.
        score_BST = score_BST.float().masked_fill(~is_there_B1T, _NEVER)
        weight_BST = score_BST.softmax(dim=2) * is_there_B1T
        return weight_BST.to(past.value_BTD.dtype) @ past.value_BTD

    def fold(self, past: Past, *, dtype: torch.dtype) -> FoldedPast:
        """Multiply keys and query projection once, for :meth:`recall_folded`.

        Args:
            past: of the rows.
            dtype: of the result; the product is taken in float32.
        """
        with torch.autocast(past.key_BTD.device.type, enabled=False):
            key_BDT = past.key_BTD.float().transpose(1, 2) * self.dim**-0.5
            bias_B1T = (self.query.bias.float() @ key_BDT).unsqueeze(1)
            folded = FoldedPast(
                self.query.weight.float().T @ key_BDT,
                bias_B1T.masked_fill(~past.is_there_BT.unsqueeze(1), _NEVER),
                past.value_BTD * past.is_there_BT.unsqueeze(2),
            )
        return FoldedPast(*(part.to(dtype) for part in folded))

    def recall_folded(self, target_BSD: Tensor, past: FoldedPast) -> Tensor:
        """As `recall`."""
        score_BST = torch.baddbmm(past.bias_B1T, target_BSD, past.score_BDT)
        return score_BST.softmax(dim=2) @ past.value_BTD


class FeedbackSum(nn.Module):
    """The whole history in one vector, and how far the candidate agrees with it.

    Sums each history item's vector through the projection of its kind of feedback, divided by the
    root of their number. Its product with the candidate is the factored form of linear item-item
    models: every history item adds a learned affinity, of either sign, to the candidate.

    Args:
        dim: D of item vectors.
        num_kinds: K kinds of feedback.

    Shape:
        item_UD, candidate_B, history_T, history_kind_T, history_offsets (B + 1) -> (B, 2 * D), the
        history alone in the first half.
    """

    def __init__(self, dim: int, *, num_kinds: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_kinds = num_kinds
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, num_kinds * dim, bias=False)

    def values(self, item_UD: Tensor) -> Tensor:
        """What each item adds in each kind of feedback (U * K, D)."""
        return self.value(item_UD).view(-1, self.dim)

    def forward(
        self,
        item_UD: Tensor,
        candidate_B: Tensor,
        history_T: Tensor,
        history_kind_T: Tensor,
        history_offsets: Tensor,
        value_ND: Tensor | None = None,
    ) -> Tensor:
        """Sum each row's history and set it against the candidate; `value_ND` is `values`' own."""
        sum_BD = embedding_bag(
            history_T * self.num_kinds + history_kind_T,
            (self.values(item_UD) if value_ND is None else value_ND).float(),
            history_offsets[:-1],
            mode="sum",
        )
        sum_BD = sum_BD * history_offsets.diff().clamp_min(1).rsqrt().unsqueeze(1)
        return torch.cat([sum_BD, self.query(item_UD[candidate_B]) * sum_BD], dim=1)


def softmax_by_row(score_T: Tensor, row_T: Tensor, num_rows: int) -> Tensor:
    """Softmax over the positions of each row; `row_T` names each position's row."""
    highest_B = score_T.new_full((num_rows,), float("-inf"))
    highest_B = highest_B.scatter_reduce(0, row_T, score_T.detach(), "amax")
    exponent_T = (score_T - highest_B.index_select(0, row_T)).exp()
    total_B = exponent_T.new_zeros(num_rows).index_add(0, row_T, exponent_T)
    return exponent_T / total_B.index_select(0, row_T)
