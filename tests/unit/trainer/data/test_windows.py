from itertools import chain

import numpy as np
import pytest

from trainer.data.schema import RowRange
from trainer.data.windows import BatchPlan, WindowOrder


def rows_of(order: WindowOrder, epoch: int, rank: int, skip: int = 0) -> list[int]:
    return [
        row
        for _, rows in order.slices(epoch, rank, skip=skip)
        for row in range(rows.start, rows.stop)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("window_rows", [None, 1, 10, 64, 1000])
@pytest.mark.parametrize("rows", [RowRange(0, 128), RowRange(13, 114), RowRange(64, 71)])
def test_ranks_share_all_rows_once_and_evenly(
    rows: RowRange, window_rows: int | None, world_size: int
) -> None:
    order = WindowOrder(rows, window_rows, 3, world_size)
    for epoch in range(3):
        shares = [rows_of(order, epoch, rank) for rank in range(world_size)]
        assert sorted(chain.from_iterable(shares)) == list(range(rows.start, rows.stop))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_skipped_windows_leave_the_rest_shared_evenly(skip: int) -> None:
    order = WindowOrder(RowRange(5, 98), 10, 3, 4)
    shares = [rows_of(order, 1, rank, skip=skip) for rank in range(4)]
    skipped = order.windows(1)[:skip]
    expected = [r for r in range(5, 98) if r // 10 not in skipped]  # window w holds rows 10w..
    assert sorted(chain.from_iterable(shares)) == expected
    assert order.rows_left(1, skip=skip) == len(expected)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_windows_begin_at_multiples_so_that_row_groups_are_whole() -> None:
    assert WindowOrder(RowRange(70, 400), 128, 0, 1).borders.tolist() == [70, 128, 256, 384, 400]
    assert WindowOrder(RowRange(128, 256), 128, 0, 1).borders.tolist() == [128, 256]
    assert WindowOrder(RowRange(1, 9), None, 0, 1).borders.tolist() == [1, 9]


def test_order_depends_on_seed_epoch_window_and_rank() -> None:
    orders = [WindowOrder(RowRange(0, 1000), 10, seed, 2) for seed in (0, 1)]
    drawn = [order.windows(epoch).tolist() for order in orders for epoch in (0, 1)]
    drawn += [
        order.permutation(epoch, window, rank, 100).tolist()
        for order in orders
        for epoch in (0, 1)
        for window in (0, 1)
        for rank in (0, 1)
    ]
    assert len({tuple(order) for order in drawn}) == len(drawn)
    assert all(sorted(order) == list(range(100)) for order in drawn)
    again = WindowOrder(RowRange(0, 1000), 10, 1, 2)
    assert again.windows(1).tolist() == orders[1].windows(1).tolist()
    same = again.permutation(1, 1, 1, 50) == orders[1].permutation(1, 1, 1, 50)
    assert same.all()


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_rows", [5, 17, 60, 61])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_even_plan_covers_every_row_with_as_many_batches_everywhere(
    num_rows: int, world_size: int, batch_size: int
) -> None:
    plan = BatchPlan(num_rows, world_size, batch_size, drop_last=False)
    for rank_rows in {num_rows // world_size, -(-num_rows // world_size)}:
        stops = [plan.stop(batch, rank_rows) for batch in range(-1, plan.num_batches)]
        sizes = np.diff(stops)
        assert (stops[0], stops[-1]) == (0, rank_rows)
        assert sizes.min() >= 1
        assert sizes.max() <= batch_size + (batch_size == 1)
        assert sizes.max() - sizes.min() <= 1


def test_full_plan_drops_what_is_left() -> None:
    plan = BatchPlan(23, 2, 5, drop_last=True)
    assert plan.num_batches == 2
    assert [plan.stop(batch, 12) for batch in (-1, 0, 1)] == [0, 5, 10]
