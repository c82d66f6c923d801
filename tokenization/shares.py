"""Which part of all items this process holds, and sums over all processes.

Under torchrun every rank fits the same codebooks to its own share of the items; without it there
is one share. Sums are taken in double, so that the number of ranks changes codebooks by rounding
alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray


@dataclass(frozen=True)
class Share:
    """Rows `start .. start + num_rows` of `total` rows.

    Attributes:
        start: index of this process's first row among all.
        num_rows: rows here.
        total: rows of all processes.
        is_alone: other processes have no part in it, even where there are some.
    """

    start: int
    num_rows: int
    total: int
    is_alone: bool = False

    @classmethod
    def of(cls, num_rows: int) -> Share:
        """The share of this process, in the order of ranks; all of it without process group."""
        if not dist.is_initialized():
            return cls(0, num_rows, num_rows)
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64)
        counts[dist.get_rank()] = num_rows
        dist.all_reduce(counts)
        start = int(counts[: dist.get_rank()].sum())
        return cls(start, num_rows, int(counts.sum()))

    def add(self, array: NDArray[Any]) -> None:
        """Sum an array over all processes, in place."""
        if dist.is_initialized() and not self.is_alone:
            dist.all_reduce(torch.from_numpy(array))

    def local(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Which places of `rows` (indices among all rows) are held here, and as which own rows."""
        places = np.flatnonzero((rows >= self.start) & (rows < self.start + self.num_rows))
        return places, rows[places] - self.start


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Be one of torchrun's ranks for as long as the block lasts; alone, nothing happens.

    Arrays on the host go by gloo, tensors on GPUs by NCCL.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """True on the rank that writes files and talks to people."""
    return not dist.is_initialized() or dist.get_rank() == 0
