"""Users' items as the generator reads them: windows of a fixed width, batches of like length.

Legend: U users, M windows, B windows of a batch, T items, L levels, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenization.sasrec import last_clicks
from trainer.data.ragged import Ragged

_SORTED_BATCHES = 32


def last_items(histories: Ragged, max_items: int) -> NDArray[np.int64]:
    """The last items of each history, int64 (R, T), oldest first, -1 behind the end.

    T is the longest of them, at least 1.
    """
    widest = min(max_items, max(1, int(histories.lengths.max(initial=0))))
    return last_clicks(histories.values, histories.offsets[:-1], histories.lengths, widest) - 1


def windows(sequences: Ragged, max_items: int) -> NDArray[np.int64]:
    """Cut sequences so that every item is predicted from what stands before it.

    A window has `max_items + 1` items; a longer sequence is cut from its end on, and each window
    begins with the last item of the one before, so that no step from item to item is lost.

    Args:
        sequences: U lists of item rows, oldest first.
        max_items: items that the generator reads.

    Returns:
        int64 (M, T), -1 behind the end; T is at most `max_items + 1`.
    """
    lengths = sequences.lengths
    number = np.where(lengths > 0, np.maximum(1, -(-(lengths - 1) // max_items)), 0)
    user = np.repeat(np.arange(len(lengths)), number)
    place = np.arange(len(user)) - np.repeat(np.cumsum(number) - number, number)
    stop = lengths[user] - place * max_items
    start = np.maximum(0, stop - max_items - 1)
    first = sequences.offsets[:-1][user] + start
    widest = int((stop - start).max(initial=1))
    return last_clicks(sequences.values, first, stop - start, widest) - 1


def batches(
    windows_MT: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Windows in random order, those of like length together, without columns that nobody fills.

    Args:
        windows_MT: of `windows`.
        batch_size: B.
        rng: of the order.
    """
    lengths = (windows_MT >= 0).sum(axis=1)
    order = rng.permutation(len(windows_MT))
    block = batch_size * _SORTED_BATCHES
    parts = []
    for start in range(0, len(order), block):
        rows = order[start : start + block]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        parts += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    for at in rng.permutation(len(parts)):
        yield windows_MT[parts[at], : lengths[parts[at]].max()]


def num_batches(windows_MT: NDArray[np.int64], batch_size: int) -> int:
    """How many `batches` there are."""
    return -(-len(windows_MT) // batch_size)


def codes_of(codes_NL: Tensor, items_BT: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Codes of item rows.

    Args:
        codes_NL: int64, on the device of the result.
        items_BT: int64, -1 for none.

    Returns:
        int64 (B, T, L), those of item 0 where there is none; bool (B, T), whether there is one.
    """
    items = torch.from_numpy(items_BT).to(codes_NL.device)
    return codes_NL[items.clamp_min(0)], items >= 0
