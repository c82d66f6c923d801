"""What a run's state consists of, by names and places that do not depend on how it is spread.

Every tensor has one logical whole, whatever the plan: `table/<table>/weight` and
`table/<table>/state/<slot>` in rows x columns of the table, `network/<name>/value` and
`network/<name>/state/<slot>` in the shape of the parameter. A rank holds parts of them: boxes of a
whole, in the model's own memory. So a table may be data-parallel in one run and split by rows in
the next, and a rank without any shard simply has no part.

Row-wise optimizer state is one value for each row *and column shard*. Its whole is therefore taken
as rows x columns too, constant over the columns of a shard (`per_row`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.batched_embedding_kernel import (
    BatchedDenseEmbedding,
    BatchedDenseEmbeddingBag,
    BatchedFusedEmbedding,
    BatchedFusedEmbeddingBag,
)
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from trainer.distributed import Ranks
from trainer.modules.managed_ids import row_managers
from trainer.parallelize import ParallelModel, unwrapped

_SPLIT_BYTES = 1 << 20
"""Replicated tensors of at least this size are written by all ranks, some rows each."""


@dataclass(frozen=True)
class Box:
    """A rectangular part of a whole.

    Attributes:
        offsets: of its first element, by dimension.
        sizes: by dimension.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box that is all of `shape`."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def num_values(self) -> int:
        """Elements in the box; 1 for a scalar."""
        count = 1
        for size in self.sizes:
            count *= size
        return count

    def overlap(self, other: Box) -> Box | None:
        """What two boxes of the same whole share; None when nothing."""
        offsets, sizes = [], []
        for o, s, other_o, other_s in zip(
            self.offsets, self.sizes, other.offsets, other.sizes, strict=True
        ):
            start, stop = max(o, other_o), min(o + s, other_o + other_s)
            if stop <= start:
                return None
            offsets.append(start)
            sizes.append(stop - start)
        return Box(tuple(offsets), tuple(sizes))

    def inside(self, outer: Box) -> tuple[slice, ...]:
        """Where this box lies in the memory of `outer`."""
        return tuple(
            slice(o - outer_o, o - outer_o + s)
            for o, s, outer_o in zip(self.offsets, self.sizes, outer.offsets, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Part:
    """What one rank holds of a logical tensor.

    Attributes:
        name: of the whole.
        shape: of the whole.
        box: that this rank holds.
        tensor: the model's own memory, of the box's sizes; of `(rows,)` with `per_row`.
        per_row: one value stands for all columns of a row of the box.
        replicated: every rank holds the same; some of them write it.
    """

    name: str
    shape: tuple[int, ...]
    box: Box
    tensor: Tensor
    per_row: bool = False
    replicated: bool = False

    @property
    def num_bytes(self) -> int:
        """Bytes of this rank's values."""
        return self.tensor.numel() * self.tensor.element_size()

    def rows(self, start: int, stop: int) -> Part:
        """Some of its rows, counted from the box's first."""
        offsets = (self.box.offsets[0] + start, *self.box.offsets[1:])
        sizes = (stop - start, *self.box.sizes[1:])
        return replace(self, box=Box(offsets, sizes), tensor=self.tensor[start:stop])


def parts_of(parallel: ParallelModel) -> list[Part]:
    """Everything that this rank holds of weights, buffers and optimizer state.

    The tensors are the model's own memory: writing to them changes the model.

    Raises:
        ValueError: for a kernel whose rows can't be read in place.
    """
    with torch.no_grad():
        return [
            *_fused_tables(parallel),
            *_replicated_tables(parallel),
            *_sparse_buffers(parallel),
            *_network(parallel),
        ]


def waiting_parts(parallel: ParallelModel, ranks: Ranks) -> list[Part]:
    """Ids that this rank's managed tables have seen since their last round."""
    return [
        Part(waiting_name(table, ranks), tuple(ids.shape), Box.whole(ids.shape), ids)
        for table, manager in row_managers(unwrapped(parallel.model).sparse).items()
        if (ids := manager.pending).numel()
    ]


def waiting_name(table: str, ranks: Ranks) -> str:
    """Under which a rank's ids that wait for a round are saved."""
    return f"waiting/rank_{ranks.rank}/{table}"


def written_by(parts: Sequence[Part], ranks: Ranks) -> list[Part]:
    """The parts that this rank writes, so that every value is written once.

    Large replicated tensors are shared out by rows, small ones in turn.
    """
    written, position = [], 0
    for part in parts:
        if not part.replicated:
            if part.box.num_values:
                written.append(part)
            continue
        position += 1
        num_rows = part.box.sizes[0] if part.box.sizes else 0
        if part.num_bytes >= _SPLIT_BYTES and num_rows >= ranks.world_size:
            start, stop = (num_rows * (ranks.rank + i) // ranks.world_size for i in (0, 1))
            written.append(part.rows(start, stop))
        elif position % ranks.world_size == ranks.rank:
            written.append(part)
    return written


def fused_kernels(
    sparse: nn.Module,
) -> Iterator[BatchedFusedEmbedding | BatchedFusedEmbeddingBag]:
    """The kernels that hold this rank's shards and update them inside the backward pass.

    Raises:
        ValueError: for a kernel whose rows can't be read in place.
    """
    for collection in sparse.modules():
        if not isinstance(collection, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
            continue
        for lookup in collection._lookups:
            inner: Any = lookup.module if isinstance(lookup, DistributedDataParallel) else lookup
            for kernel in inner._emb_modules:
                if isinstance(kernel, BatchedFusedEmbedding | BatchedFusedEmbeddingBag):
                    yield kernel
                elif not isinstance(kernel, BatchedDenseEmbedding | BatchedDenseEmbeddingBag):
                    names = [table.name for table in kernel.config.embedding_tables]
                    raise ValueError(
                        f"tables {', '.join(names)}: their kernel {type(kernel).__name__} does not "
                        "keep rows in memory that checkpoints can read; leave 'key_value' out of "
                        "their kernels"
                    )


def _fused_tables(parallel: ParallelModel) -> Iterator[Part]:
    for kernel in fused_kernels(unwrapped(parallel.model).sparse):
        kernel.flush()  # rows that are cached on the device, back to where the views below point
        states = kernel.emb_module.get_optimizer_state()
        weights = kernel.emb_module.split_embedding_weights()
        for at, (table, weight) in enumerate(
            zip(kernel.config.embedding_tables, weights, strict=True)
        ):
            place = table.local_metadata
            assert place is not None
            shape = (table.num_embeddings, table.embedding_dim)
            box = Box(tuple(place.shard_offsets), tuple(place.shard_sizes))
            if tuple(weight.shape) != box.sizes:
                raise ValueError(
                    f"table {table.name!r}: {weight.dtype} rows hold their scale beside the values "
                    "and can't be cut by columns; checkpoints hold fp32 and fp16 tables"
                )
            yield Part(f"table/{table.name}/weight", shape, box, weight)
            for slot, value in (states[at] if states else {}).items():
                name = f"table/{table.name}/state/{slot}"
                yield Part(name, shape, box, value, per_row=value.dim() == 1)


def _replicated_tables(parallel: ParallelModel) -> Iterator[Part]:
    for table, optimizer in parallel.optimizer.table_optimizers.items():
        weight = optimizer.param_groups[0]["params"][0]
        shape = tuple(weight.shape)
        box = Box.whole(shape)
        yield Part(f"table/{table}/weight", shape, box, weight.detach(), replicated=True)
        for slot, value in optimizer.state[weight].items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue  # no momentum, or the number of steps, which the checkpoint knows
            per_row = shape[1] > 1 and tuple(value.shape) == (shape[0], 1)
            tensor = value.view(-1) if per_row else value
            name = f"table/{table}/state/{slot}"
            yield Part(name, shape, box, tensor, per_row=per_row, replicated=True)


def _sparse_buffers(parallel: ParallelModel) -> Iterator[Part]:
    """What TorchRec keeps beside the tables, for instance maps of managed ids."""
    tables = {table for module in parallel.plan.plan.values() for table in module}
    for path, value in unwrapped(parallel.model).sparse.state_dict().items():
        *_, owner, leaf = ("", *path.split("."))
        if leaf == "weight" and owner in tables:
            continue
        name = f"sparse/{path}"
        if not isinstance(value, ShardedTensor):
            yield _replicated(name, value)
            continue
        for shard in value.local_shards():
            box = Box(tuple(shard.metadata.shard_offsets), tuple(shard.metadata.shard_sizes))
            yield Part(name, tuple(value.size()), box, shard.tensor.detach())


def _network(parallel: ParallelModel) -> Iterator[Part]:
    network = parallel.network
    for name, value in network.state_dict().items():  # FSDP2 puts sharded parameters back first
        yield _dense(f"network/{name}/value", value)
    optimizer = parallel.optimizer.network_optimizer
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            yield _dense(f"network/{name}/state/{slot}", value)


def _dense(name: str, value: Tensor) -> Part:
    if not isinstance(value, DTensor):
        return _replicated(name, value)
    sizes, offsets = compute_local_shape_and_global_offset(
        value.shape, value.device_mesh, value.placements
    )
    local = value.to_local()
    if any(placement.is_replicate() for placement in value.placements):
        raise ValueError(f"{name}: replicated over a part of the ranks, expected a plain shard")
    return Part(name, tuple(value.shape), Box(tuple(offsets), tuple(sizes)), local)


def _replicated(name: str, value: Tensor) -> Part:
    shape = tuple(value.shape)
    return Part(name, shape, Box.whole(shape), value.detach(), replicated=True)
