"""The record that travels from the reader to the model.

Shape suffixes: B impressions of this rank's batch, U distinct items in it (candidates and
history items), T history positions of all impressions, N labels (tasks), F dense features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """One rank's part of a global batch.

    An item that occurs several times, as candidate or in histories, is looked up once: `items`
    holds each distinct item's ids and `candidate_B` / `history_T` point into it.

    Attributes:
        dense_BF: float32 numbers, transformed as the schema says.
        pooled: ids of categorical and bag features, stride B, keys in schema order.
        items: identity ids of the distinct items (`item_id`, or gen- and mem-tokens), stride U.
        candidate_B: int64 position of the impression's item in `items`.
        history_T: int64 positions of history items in `items`, row after row; within a row one
            history of the schema after the other, each oldest first.
        history_kind_T: int64 number of the history in the schema that each position is from.
        history_offsets: int64 (B + 1), where each row's history starts in `history_T`.
        labels_BN: float32 labels.
        row_B: int64 position in the log, which evaluation joins on.
    """

    dense_BF: Tensor
    pooled: KeyedJaggedTensor
    items: KeyedJaggedTensor
    candidate_B: Tensor
    history_T: Tensor
    history_kind_T: Tensor
    history_offsets: Tensor
    labels_BN: Tensor
    row_B: Tensor

    @property
    def batch_size(self) -> int:
        """Number of impressions B."""
        return self.candidate_B.shape[0]

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Copy to `device`."""
        return Batch(
            **{
                field.name: getattr(self, field.name).to(device=device, non_blocking=non_blocking)
                for field in fields(self)
            }
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that `stream` uses this batch's memory."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, from which copies to the device overlap with work."""
        return Batch(
            **{field.name: getattr(self, field.name).pin_memory() for field in fields(self)}
        )
