from itertools import chain

import numpy as np

from trainer.data.ragged import Ragged

LISTS = [[3, 1], [], [4, 1, 5], [9], []]


def from_lists(lists: list[list[int]]) -> Ragged:
    flat = np.array([value for row in lists for value in row], dtype=np.int64)
    return Ragged.from_lengths(flat, np.array([len(row) for row in lists], dtype=np.int64))


def to_lists(ragged: Ragged) -> list[list[int]]:
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


def test_take_gives_the_lists_in_the_order_asked_for() -> None:
    rows = np.array([2, 2, 1, 0, 4, 3])
    values, lengths = from_lists(LISTS).take(rows)
    assert values.tolist() == [value for row in rows for value in LISTS[row]]
    assert lengths.tolist() == [len(LISTS[row]) for row in rows]
    assert to_lists(from_lists(LISTS).gather(rows)) == [LISTS[row] for row in rows]


def test_take_of_nothing_and_of_empty_lists() -> None:
    assert from_lists(LISTS).take(np.zeros(0, dtype=np.int64))[0].tolist() == []
    values, lengths = from_lists(LISTS).take(np.array([1, 4]))
    assert values.tolist() == []
    assert lengths.tolist() == [0, 0]


def test_concatenate() -> None:
    parts = [from_lists(LISTS), from_lists([[7]]), from_lists([[], [8, 8]])]
    assert to_lists(Ragged.concatenate(parts)) == [*LISTS, [7], [], [8, 8]]


def test_zip_joins_the_lists_of_each_row() -> None:
    rng = np.random.default_rng(3)
    parts = [
        Ragged.from_lengths(rng.integers(0, 99, lengths.sum()), lengths)
        for lengths in rng.integers(0, 4, (3, 50))
    ]
    rows = [[p.values[p.offsets[i] : p.offsets[i + 1]].tolist() for p in parts] for i in range(50)]
    joined = Ragged.zip(parts)
    assert [
        joined.values[joined.offsets[i] : joined.offsets[i + 1]].tolist() for i in range(50)
    ] == [list(chain.from_iterable(lists)) for lists in rows]
