"""Put stored boxes into a model that is spread in another way.

Values of weights, of element-wise state and of the network are moved, never changed. Row-wise
state is converted, because its values depend on the columns of a shard:

Row-wise Adagrad (TorchRec's and FBGEMM's) keeps s = sum over steps of mean over the shard's columns
of g^2. The mean over columns of a wider shard is the mean of the narrower shards' means, weighted
by their numbers of columns; so **joined shards take the column-weighted mean**, which is exactly
what the wide shard would have collected from the same gradients. What a narrower shard would have
collected is not known; so **split shards take a copy**, which leaves each value's next step,
lr / (sqrt(s) + eps), as it was. Both are the same rule (the mean over the target's columns of the
stored value of each column), shards with equal columns are copied bit for bit, and splitting then
joining gives back what was there. Partial row-wise Adam's second moment is a mean over columns too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainer.state_parts import Box, Part
from trainer.stored_state import DTYPES, CheckpointError, Chunk, StoredState, StoredTensor

_BLOCK_BYTES = 64 << 20


def misfit(part: Part, stored: StoredTensor) -> str | None:
    """Why a stored tensor can't take the place of a part; None when it can."""
    if stored.shape != part.shape:
        return f"is {list(stored.shape)}, the model's is {list(part.shape)}"
    return kind_misfit(part, stored)


def kind_misfit(part: Part, stored: StoredTensor) -> str | None:
    """Why values are of another kind, whatever their number; None when they are not."""
    if stored.per_row != part.per_row:
        kinds = ("a value for each element", "a value for each row")
        return f"holds {kinds[stored.per_row]}, the model's {kinds[part.per_row]}"
    is_state = "/state/" in part.name
    if stored.dtype != DTYPES[part.tensor.dtype] and not is_state:
        return f"is {stored.dtype}, the model's is {DTYPES[part.tensor.dtype]}"
    return None


def fill(part: Part, stored: StoredTensor, source: StoredState) -> None:
    """Copy into `part` what the checkpoint holds of its box.

    State of another dtype (data-parallel tables keep it in the weights' dtype, fused kernels in
    fp32) is rounded to the model's.

    Args:
        part: of the model; its memory is written.
        stored: the logical tensor of the same name and shape.
        source: the checkpoint.

    Raises:
        CheckpointError: when shape or kind differ, or the boxes leave a gap.
    """
    if (reason := misfit(part, stored)) is not None:
        raise CheckpointError(f"{source.path}: {part.name} {reason}")
    fill_rows(part, stored, source)


def fill_rows(part: Part, stored: StoredTensor, source: StoredState) -> None:
    """As :func:`fill`; rows of the part beyond those stored stay as they are."""
    if not part.box.num_values:
        return
    wanted = part.box
    if wanted.sizes:
        rows = min(wanted.sizes[0], stored.shape[0] - wanted.offsets[0])
        if rows <= 0:
            return
        part = part.rows(0, rows)
        wanted = part.box
    overlaps = [(chunk, shared) for chunk in stored.chunks if (shared := wanted.overlap(chunk.box))]
    if sum(shared.num_values for _, shared in overlaps) != wanted.num_values:
        raise CheckpointError(
            f"{source.path}: {part.name} has a gap in rows {wanted.offsets} + {wanted.sizes}; "
            "the checkpoint is not whole"
        )
    with torch.no_grad():
        if part.per_row:
            _fill_per_row(part, stored, source, overlaps)
            return
        for chunk, shared in overlaps:
            for block in _blocks(shared, part.tensor.element_size()):
                values = source.read(stored, chunk, block.inside(chunk.box))
                part.tensor[block.inside(wanted)].copy_(values)


def _blocks(box: Box, bytes_per_value: int) -> Iterator[Box]:
    """The box in pieces of some rows each, so that no second copy of a table is in memory."""
    if not box.sizes:
        yield box
        return
    row_bytes = box.num_values // box.sizes[0] * bytes_per_value
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, box.sizes[0], step):
        num_rows = min(step, box.sizes[0] - start)
        yield Box((box.offsets[0] + start, *box.offsets[1:]), (num_rows, *box.sizes[1:]))


def _fill_per_row(
    part: Part,
    stored: StoredTensor,
    source: StoredState,
    overlaps: Sequence[tuple[Chunk, Box]],
) -> None:
    """Mean over the part's columns of the value stored for each column."""
    num_columns = part.box.sizes[1]
    total_R: Tensor | None = None
    for chunk, shared in overlaps:
        values_R = source.read(stored, chunk, shared.inside(chunk.box)[:1])
        target = shared.inside(part.box)[0]
        if shared.sizes[1] == num_columns:
            part.tensor[target].copy_(values_R)
            continue
        if total_R is None:
            total_R = torch.zeros(part.box.sizes[0], dtype=torch.float64)
        total_R[target] += values_R.double() * shared.sizes[1]
    if total_R is None:
        return
    joined_R = torch.zeros(part.box.sizes[0], dtype=torch.bool)
    for _, shared in overlaps:
        if shared.sizes[1] != num_columns:
            joined_R[shared.inside(part.box)[0]] = True
    mean_R = (total_R / num_columns).to(part.tensor)
    part.tensor[joined_R] = mean_R[joined_R]
