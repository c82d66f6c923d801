from __future__ import annotations

import pytest

from trainer.data.position import Position, batch_plan, window_begin
from trainer.data.schema import RowRange
from trainer.data.windows import WindowOrder


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("window_rows", [None, 3, 10, 64])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_no_unseen_row_is_left_out_and_rows_seen_again_are_counted(
    world_size: int, window_rows: int | None, drop_last: bool
) -> None:
    order = WindowOrder(RowRange(5, 98), window_rows, 1, world_size)
    for first_window in (0, 1) if window_rows == 10 else (0,):
        begin = Position(2, 0, first_window)
        plan = batch_plan(order, begin, batch_size=3, drop_last=drop_last)
        for batch in range(plan.num_batches):
            seen: set[int] = set()
            for rank in range(world_size):
                slices = order.slices(2, rank, skip=first_window)
                visited = [
                    rows.start + int(at)
                    for window, rows in slices
                    for at in order.permutation(2, window, rank, len(rows))
                ]
                seen.update(visited[: plan.stop(batch - 1, len(visited))])
            found, seen_again = window_begin(order, plan, Position(2, batch, first_window))
            assert (found.epoch, found.batch) == (2, 0)
            borders = order.borders
            windows = order.windows(2)
            ahead = {
                row
                for window in windows[found.first_window :]
                for row in range(borders[window], borders[window + 1])
            }
            whole = {
                row
                for window in windows[first_window:]
                for row in range(borders[window], borders[window + 1])
            }
            assert whole - seen <= ahead
            assert len(seen & ahead) == seen_again
            first = windows[found.first_window]
            assert not seen >= set(range(borders[first], borders[first + 1]))  # as late as can be


def test_a_finished_epoch_leads_to_the_next() -> None:
    order = WindowOrder(RowRange(0, 20), 10, 1, 2)
    plan = batch_plan(order, Position(), batch_size=3, drop_last=True)
    assert window_begin(order, plan, Position(4, plan.num_batches)) == (Position(5), 0)
