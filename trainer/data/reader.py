"""Stream batches of one rank from a log of any length.

A background thread decodes the next window while another builds batches from this one; memory
holds two of the rank's slices and a few batches, however long the log is. The state is a few
integers, the same on every rank, and exact to the row.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.batch import Batch
from trainer.data.background import in_background
from trainer.data.batch_builder import BatchBuilder
from trainer.data.block import RowBlock
from trainer.data.dataset import Dataset
from trainer.data.item_features import ItemFeatures
from trainer.data.position import Position, batch_plan, window_begin
from trainer.data.schema import RowRange
from trainer.data.windows import BatchPlan, WindowOrder

logger = logging.getLogger(__name__)


class InteractionReader:
    """Batches of one rank; iterate over it.

    A new iteration begins at the first epoch, or where `load_state_dict` was told. Every rank
    yields as many batches as every other.

    Args:
        dataset: opened data folder.
        rows: range that is read, for instance `dataset.split(...).train`.
        item_features: identity ids of every item.
        batch_size: rows of a batch of this rank.
        rank: of this process.
        world_size: number of ranks.
        shuffle_rows: rows of all ranks that are shuffled together; a multiple of 65,536 x
            `world_size` reads no row group twice. None: in order of time, for evaluation.
        seed: of the shuffling.
        num_epochs: passes over the rows; None: without end.
        prefetch_batches: batches that are built ahead.
        drop_last: True: all batches full, rows left over at the end of an epoch dropped (training).
            False: every row exactly once, in batches of almost even size (evaluation).

    Raises:
        ValueError: when an argument is out of range, or a rank would have no batch.

    Example::

        reader = InteractionReader(dataset, rows=splits.train, item_features=features,
                                   batch_size=4096, rank=0, world_size=1, shuffle_rows=262_144,
                                   seed=0, num_epochs=None, drop_last=True)
        for batch in reader:
            ...
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        rows: RowRange,
        item_features: ItemFeatures,
        batch_size: int,
        rank: int,
        world_size: int,
        shuffle_rows: int | None,
        seed: int,
        num_epochs: int | None = 1,
        prefetch_batches: int = 4,
        drop_last: bool,
    ) -> None:
        at_least = {
            "batch_size": (batch_size, 1),
            "world_size": (world_size, 1),
            "seed": (seed, 0),
            "prefetch_batches": (prefetch_batches, 1),
            "num_epochs": (1 if num_epochs is None else num_epochs, 1),
            "shuffle_rows": (1 if shuffle_rows is None else shuffle_rows, 1),
        }
        for name, (value, least) in at_least.items():
            if value < least:
                raise ValueError(f"reader: {name} is {value}, expected at least {least}")
        if not 0 <= rank < world_size:
            raise ValueError(f"reader: rank is {rank}, expected 0 to {world_size - 1}")
        self._dataset = dataset
        self._item_features = item_features
        self._rank = rank
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._num_epochs = num_epochs
        self._prefetch_batches = prefetch_batches
        self._order = WindowOrder(rows, shuffle_rows, seed, world_size)
        if self._plan(Position()).num_batches < 1:
            raise ValueError(
                f"reader: {len(rows)} rows on {world_size} ranks do not fill one batch of "
                f"{batch_size} on each; lower batch_size or the number of ranks"
                if drop_last
                else f"reader: {len(rows)} rows on {world_size} ranks leave a rank without any; "
                "lower the number of ranks"
            )
        self._start = Position()
        self._position = Position()

    def __len__(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return self._plan(Position()).num_batches

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield batches, built by background threads, which end when the iterator is closed."""
        start, self._start = self._start, Position()
        self._position = start
        with closing(in_background(self._batches(start), ahead=self._prefetch_batches)) as built:
            for position, batch in built:
                self._position = position
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the position after the last batch that was yielded; the same on every rank."""
        return {
            "epoch": self._position.epoch,
            "batch": self._position.batch,
            "first_window": self._position.first_window,
            **self._identity(),
            "batch_size": self._batch_size,
            "world_size": self._order.world_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from a state.

        With the same `world_size` and `batch_size` exactly the remaining batches follow. With
        others, reading goes on at the beginning of the window that was being read, and the rows
        of it that are seen again are counted in a warning.

        Raises:
            ValueError: when the state is of other rows, another seed or another order.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"reader: the state has {name}={state.get(name)}, this reader {value}; the "
                    "order of rows differs, so there is no place to go on from: set it as it was"
                )
        position = Position(state["epoch"], state["batch"], state["first_window"])
        if (state["world_size"], state["batch_size"]) != (self._order.world_size, self._batch_size):
            position = self._window_begin(position, state["world_size"], state["batch_size"])
        self._start = self._position = position

    def _identity(self) -> dict[str, int]:
        """Return what the order of rows depends on; 0 stands for no shuffling."""
        return {
            "start": self._order.rows.start,
            "stop": self._order.rows.stop,
            "seed": self._order.seed,
            "shuffle_rows": self._order.window_rows or 0,
            "drop_last": int(self._drop_last),
        }

    def _window_begin(self, position: Position, world_size: int, batch_size: int) -> Position:
        """Return where to go on after a job of another size, and warn."""
        order = replace(self._order, world_size=world_size)
        plan = batch_plan(order, position, batch_size=batch_size, drop_last=self._drop_last)
        begin, num_seen_again = window_begin(order, plan, position)
        logger.warning(
            "resuming %d ranks x batch %d as %d ranks x batch %d: going on at the beginning of a "
            "window, %d rows of it are seen again",
            world_size,
            batch_size,
            self._order.world_size,
            self._batch_size,
            num_seen_again,
        )
        return begin

    def _plan(self, position: Position) -> BatchPlan:
        return batch_plan(
            self._order, position, batch_size=self._batch_size, drop_last=self._drop_last
        )

    def _batches(self, start: Position) -> Generator[tuple[Position, Batch], None, None]:
        """Yield each batch with the position after it."""
        builder = BatchBuilder(self._dataset, self._item_features)
        position = start
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode") as decoder:
            while self._num_epochs is None or position.epoch < self._num_epochs:
                for block in self._cut(position, decoder):
                    position = Position(position.epoch, position.batch + 1, position.first_window)
                    yield position, builder.build(block)
                position = Position(position.epoch + 1)

    def _cut(self, position: Position, decoder: ThreadPoolExecutor) -> Iterator[RowBlock]:
        """Yield the impressions of the remaining batches of an epoch."""
        plan = self._plan(position)
        slices = self._order.slices(position.epoch, self._rank, skip=position.first_window)
        rank_rows = sum(len(rows) for _, rows in slices)
        consumed = plan.stop(position.batch - 1, rank_rows) if plan.num_batches else 0
        stream = self._stream(position.epoch, slices, consumed, decoder)
        block, order, at = None, np.zeros(0, dtype=np.int64), 0
        for batch in range(position.batch, plan.num_batches):
            stop = plan.stop(batch, rank_rows)
            parts: list[RowBlock] = []
            while consumed < stop:
                if block is None or at == len(order):
                    block = None  # freed before the next one is awaited
                    block, order = next(stream)
                    at = 0
                taken = order[at : at + stop - consumed]
                parts.append(block.take(taken))
                at += len(taken)
                consumed += len(taken)
            yield RowBlock.concatenate(parts)

    def _stream(
        self,
        epoch: int,
        slices: list[tuple[int, RowRange]],
        consumed: int,
        decoder: ThreadPoolExecutor,
    ) -> Iterator[tuple[RowBlock, NDArray[np.int64]]]:
        """Yield decoded rows and the order to visit them, the next decoded while one is used.

        Args:
            epoch: number of the epoch.
            slices: of this rank.
            consumed: rows at the beginning of the slices that are skipped.
            decoder: that decodes one block at a time.
        """
        waiting: deque[tuple[Future[RowBlock], NDArray[np.int64]]] = deque()
        for rows, order in self._blocks(epoch, slices, consumed):
            waiting.append((decoder.submit(self._dataset.block, rows), order))
            if len(waiting) == 2:
                yield _decoded(*waiting.popleft())
        while waiting:
            yield _decoded(*waiting.popleft())

    def _blocks(
        self, epoch: int, slices: list[tuple[int, RowRange]], consumed: int
    ) -> Iterator[tuple[RowRange, NDArray[np.int64]]]:
        """Yield ranges to decode at once, and the order to visit their rows."""
        for window, rows in slices:
            skip = min(consumed, len(rows))
            consumed -= skip
            if skip == len(rows):
                continue
            if self._order.window_rows is not None:
                order = self._order.permutation(epoch, window, self._rank, len(rows))
                yield rows, order[skip:]
                continue
            for piece in self._dataset.parts.pieces(RowRange(rows.start + skip, rows.stop)):
                yield piece.rows, np.arange(len(piece.rows))


def _decoded(
    future: Future[RowBlock], order: NDArray[np.int64]
) -> tuple[RowBlock, NDArray[np.int64]]:
    return future.result(), order
