"""The order in which the ranks see the rows of the log, as a function of a few integers.

An epoch is a sequence of *windows* of consecutive rows, in an order drawn from (seed, epoch).
Each rank owns one contiguous slice of every window and visits it in an order drawn from (seed,
epoch, window, rank). The slices of a window cover it without overlap; their sizes differ by at most
one row, and the longer ones go round the ranks, so that the ranks' totals differ by at most one row
too. Nothing here reads data, so any position of any rank can be computed without communication.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.schema import RowRange


@dataclass(frozen=True)
class WindowOrder:
    """Windows, slices and permutations of a range of rows.

    Args:
        rows: range of the log that is visited.
        window_rows: rows that are shuffled together, over all ranks; None: one window, visited in
            order of time.
        seed: of the order, at least 0.
        world_size: number of ranks.
    """

    rows: RowRange
    window_rows: int | None
    seed: int
    world_size: int

    @property
    def borders(self) -> NDArray[np.int64]:
        """Rows at which windows begin, and the end: int64 (num_windows + 1,).

        Borders are multiples of `window_rows` counted from the beginning of the log, so that with
        windows of whole row groups no row group is read for two windows.
        """
        start, stop = self.rows.start, self.rows.stop
        if self.window_rows is None:
            return np.array([start, stop])
        first = (start // self.window_rows + 1) * self.window_rows
        inside = np.arange(first, stop, self.window_rows)
        return np.concatenate([[start], inside, [stop]])

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return len(self.borders) - 1

    def windows(self, epoch: int) -> NDArray[np.int64]:
        """Return the windows in the order of an epoch, int64 (num_windows,)."""
        if self.window_rows is None:
            return np.zeros(1, dtype=np.int64)
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
        return generator.permutation(self.num_windows)

    def slices(self, epoch: int, rank: int, *, skip: int = 0) -> list[tuple[int, RowRange]]:
        """Return (window, the rank's rows of it) in the order of an epoch.

        Args:
            epoch: number of the epoch.
            rank: whose slices.
            skip: windows at the beginning of the epoch that are left out.
        """
        windows = self.windows(epoch)[skip:]
        starts = self.borders[windows]
        sizes = self.borders[windows + 1] - starts
        shares, extras = np.divmod(sizes, self.world_size)
        # the first `extras` ranks counted from `turn` get one row more, then it is the next's turn
        turns = (np.cumsum(extras) - extras) % self.world_size
        places = (rank - turns) % self.world_size
        lows = starts + places * shares + np.minimum(places, extras)
        highs = lows + shares + (places < extras)
        return [
            (int(window), RowRange(int(low), int(high)))
            for window, low, high in zip(windows, lows, highs, strict=True)
        ]

    def rows_left(self, epoch: int, *, skip: int = 0) -> int:
        """Return the rows of all ranks in an epoch without its first `skip` windows."""
        windows = self.windows(epoch)[skip:]
        return int((self.borders[windows + 1] - self.borders[windows]).sum())

    def permutation(self, epoch: int, window: int, rank: int, num_rows: int) -> NDArray[np.int64]:
        """Return the order in which a rank visits the `num_rows` rows of its slice."""
        if self.window_rows is None:
            return np.arange(num_rows)
        key = (epoch, window, rank)
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        return generator.permutation(num_rows)


@dataclass(frozen=True)
class BatchPlan:
    """How the rows of all ranks are cut into batches: as many on every rank.

    Args:
        num_rows: of all ranks in the epoch; each has `num_rows // world_size` of them or one more.
        world_size: number of ranks.
        batch_size: rows of a rank's batch.
        drop_last: True: every batch has `batch_size` rows, and rows left over at the end are
            dropped. False: no row is dropped, and sizes are as even as can be; one row above
            `batch_size` only where `batch_size` is 1 and the ranks' rows differ.
    """

    num_rows: int
    world_size: int
    batch_size: int
    drop_last: bool

    @property
    def num_batches(self) -> int:
        """Batches of every rank."""
        fewest = self.num_rows // self.world_size
        if self.drop_last:
            return fewest // self.batch_size
        most = -(-self.num_rows // self.world_size)
        return min(-(-most // self.batch_size), fewest)

    def stop(self, batch: int, rank_rows: int) -> int:
        """Return where a batch ends, among the `rank_rows` rows of a rank.

        Args:
            batch: number of the batch; -1 gives the beginning of the first.
            rank_rows: rows that the rank has in the epoch.
        """
        if self.drop_last:
            return (batch + 1) * self.batch_size
        share, extras = divmod(rank_rows, self.num_batches)
        return (batch + 1) * share + min(batch + 1, extras)
