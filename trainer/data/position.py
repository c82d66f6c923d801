"""How far a reader has come, and where another number of ranks goes on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.windows import BatchPlan, WindowOrder


@dataclass(frozen=True)
class Position:
    """A place between two batches; the same on every rank.

    Attributes:
        epoch: number of the epoch.
        batch: batches of it that each rank has been given.
        first_window: windows left out at the beginning of the epoch (0 but after a resume on
            another number of ranks, which goes on at the beginning of a window).
    """

    epoch: int = 0
    batch: int = 0
    first_window: int = 0


def batch_plan(
    order: WindowOrder, position: Position, *, batch_size: int, drop_last: bool
) -> BatchPlan:
    """Return how the epoch at `position` is cut into batches."""
    num_rows = order.rows_left(position.epoch, skip=position.first_window)
    return BatchPlan(num_rows, order.world_size, batch_size, drop_last)


def window_begin(order: WindowOrder, plan: BatchPlan, position: Position) -> tuple[Position, int]:
    """Return the beginning of the first window that some rank had not finished at `position`.

    Args:
        order: of the job that came to `position`.
        plan: of its batches.
        position: that it came to.

    Returns:
        The place to go on from, and how many rows are seen again there.
    """
    if position.batch >= plan.num_batches:
        return Position(position.epoch + 1), 0
    windows, seen = [], 0
    for rank in range(order.world_size):
        slices = order.slices(position.epoch, rank, skip=position.first_window)
        stops = np.cumsum([len(rows) for _, rows in slices])
        consumed = plan.stop(position.batch - 1, int(stops[-1]))
        windows.append(int(np.searchsorted(stops, consumed, side="right")))
        seen += consumed
    first_window = position.first_window + min(windows)
    finished = plan.num_rows - order.rows_left(position.epoch, skip=first_window)
    return Position(position.epoch, 0, first_window), seen - finished
