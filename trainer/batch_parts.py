"""Gradient accumulation: a batch trained in parts of its rows, equal to training it whole.

Tables are looked up once for the whole batch and updated once, since their optimizers are fused
into the backward pass and would otherwise take a step for each part. The network runs part after
part, so that only one part's activations are in memory. Each part's gradient of the embeddings is
kept, and the last part's backward pass carries the sum of all into the tables.

Legend: B impressions, U distinct items, T history positions, d table dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from trainer.batch import Batch

Items = dict[str, JaggedTensor]
LossAndOutputs = tuple[Tensor, Any]
"""A scalar, and a NamedTuple of tensors with one row an impression or dicts of scalars."""


class LossInParts(nn.Module):
    """Loss of a whole batch; gradients of all parts but the last are accumulated on return.

    Args:
        loss_of: a part's loss, averaged over its rows, and its outputs, from the part and the
            embeddings of its pooled features and of its distinct items' ids.
        num_parts: parts of near equal size; no more than a batch has rows.
    """

    def __init__(
        self, loss_of: Callable[[Batch, KeyedTensor, Items], LossAndOutputs], num_parts: int
    ) -> None:
        super().__init__()
        self.loss_of = loss_of
        self.num_parts = num_parts

    def forward(self, batch: Batch, pooled: KeyedTensor, items: Items) -> LossAndOutputs:
        """Loss and outputs of a batch, from the embeddings of all of it."""
        pooled_BF = pooled.values()
        items_Td = {key: item.values() for key, item in items.items()}
        pooled_leaf = pooled_BF.detach().requires_grad_()
        items_leaf = {key: values.detach().requires_grad_() for key, values in items_Td.items()}
        bounds = [
            batch.batch_size * number // self.num_parts for number in range(self.num_parts + 1)
        ]
        losses, outputs = [], []
        for start, stop in itertools.pairwise(bounds):
            is_last = stop == batch.batch_size
            if is_last:
                pooled_leaf = _AddGradient.apply(pooled_BF, pooled_leaf.grad)
                items_leaf = {
                    key: _AddGradient.apply(items_Td[key], leaf.grad)
                    for key, leaf in items_leaf.items()
                }
            part, item_rows = take_rows(batch, start, stop)
            loss, output = self.loss_of(
                part,
                KeyedTensor(pooled.keys(), pooled.length_per_key(), pooled_leaf[start:stop]),
                {
                    key: _take_items(values, items[key].lengths(), item_rows)
                    for key, values in items_leaf.items()
                },
            )
            loss = loss * ((stop - start) / batch.batch_size)
            if not is_last:
                loss.backward()
                loss = loss.detach()
            losses.append(loss)
            outputs.append(output)
        sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
        return torch.stack(losses).sum(), _joined(outputs, sizes)


class _AddGradient(torch.autograd.Function):
    """The identity, whose gradient is what arrives plus what was accumulated before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, accumulated: Tensor | None) -> Tensor:
        ctx.save_for_backward(accumulated)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (accumulated,) = ctx.saved_tensors
        return gradient if accumulated is None else gradient + accumulated, None


def take_rows(batch: Batch, start: int, stop: int) -> tuple[Batch, Tensor]:
    """Rows of a batch as a batch of its own, and which of its distinct items that holds.

    Args:
        batch: to cut.
        start: first row.
        stop: row after the last.

    Returns:
        The part, and int64 positions in the batch's `items` of the part's items.
    """
    first, last = int(batch.history_offsets[start]), int(batch.history_offsets[stop])
    used = torch.cat([batch.candidate_B[start:stop], batch.history_T[first:last]])
    item_rows, place = torch.unique(used, return_inverse=True)
    rows = torch.arange(start, stop, device=item_rows.device)
    return (
        Batch(
            dense_BF=batch.dense_BF[start:stop],
            pooled=_take_keyed(batch.pooled, rows),
            items=_take_keyed(batch.items, item_rows),
            candidate_B=place[: stop - start],
            history_T=place[stop - start :],
            history_kind_T=batch.history_kind_T[first:last],
            history_offsets=batch.history_offsets[start : stop + 1] - first,
            labels_BN=batch.labels_BN[start:stop],
            row_B=batch.row_B[start:stop],
        ),
        item_rows,
    )


def _take_keyed(jagged: KeyedJaggedTensor, rows: Tensor) -> KeyedJaggedTensor:
    """Some rows of each feature."""
    taken = [
        _take_items(feature.values(), feature.lengths(), rows)
        for feature in jagged.to_dict().values()
    ]
    return KeyedJaggedTensor.from_lengths_sync(
        keys=jagged.keys(),
        values=torch.cat([feature.values() for feature in taken]),
        lengths=torch.cat([feature.lengths() for feature in taken]),
    )


def _take_items(values: Tensor, lengths: Tensor, rows: Tensor) -> JaggedTensor:
    """Some rows of a jagged tensor."""
    starts = lengths.cumsum(0) - lengths
    taken = lengths.index_select(0, rows)
    total = int(taken.sum())
    # A row's values stand side by side: count up from each row's start.
    shift = starts.index_select(0, rows) - (taken.cumsum(0) - taken)
    positions = torch.repeat_interleave(shift, taken, output_size=total) + torch.arange(
        total, device=values.device
    )
    return JaggedTensor(values=values.index_select(0, positions), lengths=taken)


def _joined(outputs: list[Any], sizes: list[int]) -> Any:
    """Outputs of the parts as those of the batch: rows one after the other, scalars averaged."""
    shares = [size / sum(sizes) for size in sizes]
    return type(outputs[0])(
        *(
            {
                name: sum(share * part[name] for share, part in zip(shares, parts, strict=True))
                for name in parts[0]
            }
            if isinstance(parts[0], dict)
            else torch.cat(parts)
            for parts in zip(*outputs, strict=True)
        )
    )
