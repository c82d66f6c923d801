"""Which merged tokens an item's symbols hold, given the pairs that were merged.

A merge is a key, `left * num_symbols + right`, and its place in the order of merges.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 17  # items that a thread segments at a time


def windows(
    rows_NL: NDArray[np.int64], keys: NDArray[np.int64], ranks: NDArray[np.int64], num_gen: int
) -> NDArray[np.int64]:
    """Look up every run of codes, from the run shorter by one.

    Args:
        rows_NL: gen rows, int64.
        keys: of the merges, ascending.
        ranks: their places in the order of merges.
        num_gen: symbols that are no merges.

    Returns:
        places of merges int64, -1 where a run has no token; shorter runs first.
    """
    num_symbols = num_gen + len(keys)
    current, found = rows_NL, [np.full((len(rows_NL), 1), -1, dtype=np.int64)]
    for length in range(2, rows_NL.shape[1] + 1 if len(keys) else 0):
        left = current[:, : rows_NL.shape[1] - length + 1]
        wanted = left * num_symbols + rows_NL[:, length - 1 :]
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        hit = (left >= 0) & (keys[place] == wanted)
        found.append(np.where(hit, ranks[place], -1))
        current = np.where(hit, num_gen + ranks[place], -1)
    return np.concatenate(found, axis=1)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def number(
    keys: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover, compiled
    """Number distinct keys in the order in which they first stand: each key's number, the keys."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots = np.full((size, 2), -1, dtype=np.int64)
    numbers = np.empty(len(keys), dtype=np.int64)
    distinct = np.empty(len(keys), dtype=np.int64)
    num_distinct = 0
    for i in range(len(keys)):
        slot = _slot(keys[i], size)
        while slots[slot, 0] >= 0 and slots[slot, 0] != keys[i]:
            slot = (slot + 1) & (size - 1)
        if slots[slot, 0] < 0:
            slots[slot, 0] = keys[i]
            slots[slot, 1] = num_distinct
            distinct[num_distinct] = keys[i]
            num_distinct += 1
        numbers[i] = slots[slot, 1]
    return numbers, distinct[:num_distinct].copy()


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def hash_table(keys: NDArray[np.int64]) -> NDArray[np.int64]:  # pragma: no cover, compiled
    """Hash table `(slots, 2)` of key and its place in `keys`, -1 where empty; open addressing."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    slots = np.full((size, 2), -1, dtype=np.int64)
    for i in range(len(keys)):
        slot = _slot(keys[i], size)
        while slots[slot, 0] >= 0:
            slot = (slot + 1) & (size - 1)
        slots[slot, 0] = keys[i]
        slots[slot, 1] = i
    return slots


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _slot(key: Any, size: Any) -> Any:  # pragma: no cover, compiled
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(size - 1))


@numba.njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _find(key: Any, slots: NDArray[np.int64]) -> Any:  # pragma: no cover, compiled
    slot = _slot(key, len(slots))
    while slots[slot, 0] >= 0:
        if slots[slot, 0] == key:
            return slots[slot, 1]
        slot = (slot + 1) & (len(slots) - 1)
    return np.int64(-1)


def segment(
    rows: NDArray[np.int64],
    slots: NDArray[np.int64],
    num_gen: int,
    num_symbols: int,
    whole_tree: bool,
) -> NDArray[np.int64]:
    """Segment each item by the earliest merge first.

    Args:
        rows: symbols, int64 `(N, L)`.
        slots: `hash_table` of the merges' keys.
        num_gen: symbols that are no merges.
        num_symbols: all symbols.
        whole_tree: list every merge made on the way, not only those that are left.

    Returns:
        places of merges, int64 `(N, L)`; -1 fills the unused places.
    """
    tokens = np.full(rows.shape, -1, dtype=np.int64)
    num_threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_threads) as threads:
        blocks = [
            threads.submit(
                _segment_rows,
                rows[start : start + _BLOCK],
                slots,
                num_gen,
                num_symbols,
                whole_tree,
                tokens[start : start + _BLOCK],
            )
            for start in range(0, len(rows), _BLOCK)
        ]
        for block in blocks:
            block.result()
    return tokens


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _segment_rows(  # pragma: no cover, compiled
    rows: NDArray[np.int64],
    slots: NDArray[np.int64],
    num_gen: int,
    num_symbols: int,
    whole_tree: bool,
    tokens: NDArray[np.int64],
) -> None:
    num_items, num_levels = rows.shape
    symbols = np.empty(num_levels, dtype=np.int64)
    pair_rank = np.empty(num_levels, dtype=np.int64)
    for item in range(num_items):
        length = num_levels
        symbols[:] = rows[item]
        for i in range(length - 1):
            pair_rank[i] = _find(symbols[i] * num_symbols + symbols[i + 1], slots)
        num_tokens = 0
        while length > 1:
            best = -1
            for i in range(length - 1):
                if pair_rank[i] >= 0 and (best < 0 or pair_rank[i] < pair_rank[best]):
                    best = i
            if best < 0:
                break
            made = pair_rank[best]
            symbols[best] = num_gen + made
            length -= 1
            for i in range(best + 1, length):
                symbols[i] = symbols[i + 1]
                pair_rank[i - 1] = pair_rank[i]
            if best > 0:
                key = symbols[best - 1] * num_symbols + symbols[best]
                pair_rank[best - 1] = _find(key, slots)
            if best < length - 1:
                key = symbols[best] * num_symbols + symbols[best + 1]
                pair_rank[best] = _find(key, slots)
            if whole_tree:
                tokens[item, num_tokens] = made
                num_tokens += 1
        if not whole_tree:
            for i in range(length):
                if symbols[i] >= num_gen:
                    tokens[item, num_tokens] = symbols[i] - num_gen
                    num_tokens += 1
