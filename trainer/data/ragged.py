"""Lists of different lengths in two flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """N lists of integers: list i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
        values: integers of all lists, one after the other.
        offsets: int64 (N + 1), begins at 0.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of lists N."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each list, int64 (N,)."""
        return np.diff(self.offsets)

    @classmethod
    def from_lengths(cls, values: NDArray[Any], lengths: NDArray[np.int64]) -> Ragged:
        """Build from flat values and the length of each list."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    def take(self, rows: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the flat values and the lengths of the lists `rows`, in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[1:][rows] - starts
        ends = np.cumsum(lengths)
        # position in `values` = position in the output + (start in values - start in the output)
        position = np.repeat(starts - (ends - lengths), lengths)
        position += np.arange(len(position))
        return self.values.take(position), lengths

    def gather(self, rows: NDArray[np.integer]) -> Ragged:
        """Return the lists `rows`, in that order."""
        return Ragged.from_lengths(*self.take(rows))

    @classmethod
    def zip(cls, parts: Sequence[Ragged]) -> Ragged:
        """Join list i of every part into list i, the parts in their order."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.sum([part.lengths for part in parts], axis=0)
        joined = cls.from_lengths(np.empty(int(lengths.sum()), parts[0].values.dtype), lengths)
        starts = joined.offsets[:-1].copy()
        for part in parts:
            position = np.repeat(starts - part.offsets[:-1], part.lengths)
            position += np.arange(len(position))
            joined.values[position] = part.values
            starts += part.lengths
        return joined

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """Put lists of several records one after the other."""
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts])
        return cls.from_lengths(values, np.concatenate([part.lengths for part in parts]))
