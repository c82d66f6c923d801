"""The history in a few vectors that no candidate has a say in, recent items first.

Legend: B impressions, U distinct items, T history positions of all impressions, K kinds of
feedback, M heads, D item dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from trainer.modules.target_attention import softmax_by_row

STEEPEST = 2.0
"""Head m's weights fall as (1 + age) ** -slope, slopes evenly spaced from 0 to this."""


class RecentHistory(nn.Module):
    """Attention over the history with learned queries, each with its own view of age.

    An item's score does not depend on the impression, so it is computed once an item and kind;
    the positions then cost a sum each. Age counts the later items of the same kind.

    Args:
        dim: D.
        num_kinds: K.
        num_heads: M.

    Shape:
        item_UD, value_ND (U * K, D), history_T, history_kind_T, history_offsets (B + 1) ->
        (B, M * D); zeros for a row without history.
    """

    def __init__(self, dim: int, *, num_kinds: int, num_heads: int) -> None:
        super().__init__()
        self.num_kinds = num_kinds
        self.num_heads = num_heads
        self.score = nn.Linear(dim, num_kinds * num_heads, bias=False)

    def forward(
        self,
        item_UD: Tensor,
        value_ND: Tensor,
        history_T: Tensor,
        history_kind_T: Tensor,
        history_offsets: Tensor,
    ) -> Tensor:
        """Sum the values of each row's history, weighted by content and age."""
        num_rows = history_offsets.shape[0] - 1
        row_T = torch.repeat_interleave(
            torch.arange(num_rows, device=history_T.device),
            history_offsets.diff(),
            output_size=history_T.shape[0],
        )
        log_age_T = (1 + self._age(row_T, history_kind_T, num_rows)).log()
        at_T = history_T * self.num_kinds + history_kind_T
        score_MT = self.score(item_UD).float().view(-1, self.num_heads).index_select(0, at_T).T
        heads = []
        for head, score_T in enumerate(score_MT):
            slope = STEEPEST * head / max(1, self.num_heads - 1)
            weight_T = softmax_by_row(score_T - slope * log_age_T, row_T, num_rows)
            heads.append(
                embedding_bag(
                    at_T,
                    value_ND.float(),
                    history_offsets[:-1],
                    mode="sum",
                    per_sample_weights=weight_T,
                )
            )
        return torch.cat(heads, dim=1)

    def _age(self, row_T: Tensor, history_kind_T: Tensor, num_rows: int) -> Tensor:
        """Later items of the same row and kind; a row's kinds stand one after the other."""
        segment_T = row_T * self.num_kinds + history_kind_T
        length = segment_T.new_zeros(num_rows * self.num_kinds)
        length = length.index_add(0, segment_T, torch.ones_like(segment_T))
        end = length.cumsum(0).index_select(0, segment_T)
        return end - 1 - torch.arange(len(segment_T), device=segment_T.device)
