"""Item embeddings that k-means walks through level by level, in memory or on disk.

k-means asks for little: blocks of residuals in order, a few rows for a start, and the step down
to the next level. In memory the residuals are updated in place; on disk the embeddings are read
again in every pass and the codewords chosen so far are subtracted block by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenization.base import Embeddings, check_embeddings

_BLOCK_BYTES = 1 << 26  # of embeddings held at a time


class EmbeddingSource(Protocol):
    """Item embeddings on disk; :class:`NpyFile` and :class:`ParquetFile`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Items and dimensions."""
        ...

    def blocks(self) -> Iterator[Embeddings]:
        """Yield checked float32 blocks `(B, D)` in the order of items; they may be written to."""
        ...


@dataclass(frozen=True, eq=False)
class Matrix:
    """Embeddings that are in memory, as a source.

    Args:
        embeddings: floating `(N, D)`.
    """

    embeddings: NDArray[np.floating]

    @property
    def shape(self) -> tuple[int, int]:
        """Items and dimensions."""
        return self.embeddings.shape[0], self.embeddings.shape[1]

    def blocks(self) -> Iterator[Embeddings]:
        """Yield float32 copies of blocks."""
        size = max(1, _BLOCK_BYTES // (4 * self.shape[1]))
        for start in range(0, self.shape[0], size):
            yield self.embeddings[start : start + size].astype(np.float32)


@dataclass(frozen=True)
class NpyFile:
    """A matrix that `numpy.save` wrote: floating `(N, D)`, in C order.

    Args:
        path: the file.
        start: first row that belongs to this source.
        stop: row after the last; None for all.
    """

    path: Path
    start: int = 0
    stop: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Items and dimensions.

        Raises:
            ValueError: not such a file.
        """
        matrix = self._map()
        num_rows = len(range(*slice(self.start, self.stop).indices(matrix.shape[0])))
        return num_rows, matrix.shape[1]

    def _map(self) -> np.memmap[tuple[int, int], np.dtype[np.floating]]:
        try:
            matrix = np.load(self.path, mmap_mode="r")
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{self.path}: expected a matrix written by numpy.save, found {error}"
            ) from error
        if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.flags.c_contiguous:
            raise ValueError(
                f"{self.path}: expected a floating matrix in C order, found {matrix.dtype} of "
                f"shape {matrix.shape}"
            )
        return matrix

    def blocks(self) -> Iterator[Embeddings]:
        """Yield float32 blocks; plain reads, so that file pages do not count as ours."""
        matrix = self._map()
        first, dtype, dim = matrix.offset, matrix.dtype, matrix.shape[1]
        begin, end, _ = slice(self.start, self.stop).indices(matrix.shape[0])
        del matrix
        size = max(1, _BLOCK_BYTES // (dim * dtype.itemsize))
        with self.path.open("rb") as file:
            file.seek(first + begin * dim * dtype.itemsize)
            for row in range(begin, end, size):
                block = np.fromfile(file, dtype=dtype, count=min(size, end - row) * dim)
                yield check_embeddings(block.reshape(-1, dim), name=f"{self.path} from row {row}")


@dataclass(frozen=True)
class ParquetFile:
    """A list column of floats of a parquet file, read row group by row group.

    Args:
        path: the file.
        column: its list column.
        start: first row that belongs to this source.
        stop: row after the last; None for all.
    """

    path: Path
    column: str = "embedding"
    start: int = 0
    stop: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Items and dimensions.

        Raises:
            ValueError: no rows.
        """
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=1, columns=[self.column]):
                rows = range(*slice(self.start, self.stop).indices(file.metadata.num_rows))
                return len(rows), len(batch.column(0)[0])
        raise ValueError(f"{self.path}: expected at least one item, found no rows")

    def blocks(self) -> Iterator[Embeddings]:
        """Yield float32 blocks.

        Raises:
            ValueError: lists of unequal lengths, nulls or NaN.
        """
        dim = self.shape[1]
        with pq.ParquetFile(self.path) as file:
            begin, end, _ = slice(self.start, self.stop).indices(file.metadata.num_rows)
            groups, row = _row_groups(file, begin, end)
            size = max(1, _BLOCK_BYTES // (4 * dim))
            for batch in file.iter_batches(
                batch_size=size, columns=[self.column], row_groups=groups
            ):
                first, row = row, row + len(batch)
                batch = batch.slice(
                    max(0, begin - first), max(0, min(end, row) - max(begin, first))
                )
                if not len(batch):
                    continue
                lists: pa.Array[Any] = batch.column(0)
                place = f"{self.path}, column {self.column} from row {max(begin, first)}"
                lengths = pc.unique(pc.list_value_length(lists)).to_pylist()
                values = pc.list_flatten(lists)
                if lengths != [dim] or values.null_count:
                    raise ValueError(f"{place}: expected lists of {dim} floats, found others")
                # Buffers of Arrow are read-only, and blocks may be written to.
                block = np.array(values.to_numpy(zero_copy_only=False)).reshape(-1, dim)
                yield check_embeddings(block, name=place)


def _row_groups(file: pq.ParquetFile, begin: int, end: int) -> tuple[list[int], int]:
    """Row groups that hold some of the rows `begin .. end`, and the first row of the first."""
    stops = np.cumsum(
        [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    )
    starts = np.concatenate([[0], stops[:-1]])
    groups = np.flatnonzero((stops > begin) & (starts < end)).tolist()
    return groups, int(starts[groups[0]]) if groups else 0


class Points(Protocol):
    """What is left of the embeddings at a level."""

    @property
    def num_points(self) -> int:
        """Items here, N."""
        ...

    @property
    def dim(self) -> int:
        """Dimensions."""
        ...

    def blocks(self) -> Iterator[tuple[int, Embeddings]]:
        """Yield first row and residuals `(B, D)`, block by block; not to be written to."""
        ...

    def descend(self, codewords: NDArray[np.float32], codes: NDArray[np.int32]) -> None:
        """Subtract each item's codeword of the level that was just fitted."""
        ...


class PointsInMemory:
    """Residuals in memory.

    Args:
        embeddings: float32 `(N, D)`; copied.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        self._left_over = embeddings.copy()
        self.num_points, self.dim = embeddings.shape

    def blocks(self) -> Iterator[tuple[int, Embeddings]]:
        """Yield everything at once."""
        yield 0, self._left_over

    def descend(self, codewords: NDArray[np.float32], codes: NDArray[np.int32]) -> None:
        """Subtract in place."""
        size = max(1, _BLOCK_BYTES // (4 * self.dim))
        for start in range(0, self.num_points, size):
            block = slice(start, start + size)
            self._left_over[block] -= codewords[codes[block]]


class PointsOnDisk:
    """Residuals of embeddings that stay on disk; codes are held, 4 bytes an item and level.

    Args:
        source: of the embeddings.
    """

    def __init__(self, source: EmbeddingSource) -> None:
        self._source = source
        self._levels: list[tuple[NDArray[np.float32], NDArray[np.int32]]] = []
        self.num_points, self.dim = source.shape

    def blocks(self) -> Iterator[tuple[int, Embeddings]]:
        """Read the embeddings again and subtract the levels so far."""
        start = 0
        for block in self._source.blocks():
            for codewords, codes in self._levels:
                block -= codewords[codes[start : start + len(block)]]
            yield start, block
            start += len(block)

    def descend(self, codewords: NDArray[np.float32], codes: NDArray[np.int32]) -> None:
        """Remember the level."""
        self._levels.append((codewords, codes))
