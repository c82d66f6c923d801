"""Columns of a catalogue as inputs of the alignment head: years, prices, genres, brands.

A number becomes its closeness to evenly spaced values, a category or list of categories one column
for each; products of two columns let the head say "horror of the seventies".
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

NUM_CENTRES = 10
MAX_CATEGORIES = 1000
MAX_PRODUCTS = 2048
"""Products of two columns that are kept, the most frequent ones."""
MIN_ITEMS = 10
"""Items that a product must hold for."""


def read_features(
    path: Path, columns: Sequence[str], item_ids: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return the columns' encodings and their products, centred, blocks of equal size.

    Args:
        path: parquet file with `item_id` and the columns: numbers, strings, or lists of integers
            or strings.
        columns: to read.
        item_ids: `(N,)` whose rows are returned; an id that is not in the file, such as that of a
            query, gets zeros.

    Returns:
        float32 `(N, F)`.

    Raises:
        ValueError: no such column, one of another type or with more than 1,000 categories.
    """
    schema = pq.read_schema(path)
    missing = [name for name in ("item_id", *columns) if name not in schema.names]
    if missing:
        raise ValueError(f"{path}: expected column {missing[0]!r}, found {', '.join(schema.names)}")
    table = pq.read_table(path, columns=["item_id", *columns]).combine_chunks()
    blocks = [_encoded(table[name].combine_chunks(), f"{path}, column {name}") for name in columns]
    blocks += _best_products(blocks)
    features = np.concatenate([standard(block) for block in blocks if block.shape[1]], axis=1)
    ids = table["item_id"].to_numpy()
    order = np.argsort(ids)
    place = order[np.searchsorted(ids, item_ids, sorter=order).clip(max=len(ids) - 1)]
    return np.where((ids[place] == item_ids)[:, None], features[place], np.float32(0))


def standard(block: NDArray[np.floating]) -> NDArray[np.float32]:
    """Centre the columns and divide all of them by one number: mean square 1."""
    centred = block - block.mean(axis=0)
    size = float(np.sqrt(np.square(centred).mean()))
    return (centred / (size or 1.0)).astype(np.float32)


def _best_products(blocks: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Products of different columns that most items have, side by side; an empty list for none.

    A list of categories is crossed with itself, too. How many items have a product is in the
    blocks' Gram matrices, so that only those that are kept are computed.
    """
    every = []  # (one block, the other, their columns in products, items that have each)
    for one, other in itertools.combinations(blocks, 2):
        left, right = np.divmod(np.arange(one.shape[1] * other.shape[1]), other.shape[1])
        every.append((one, other, left, right, (one.T @ other).reshape(-1)))
    for block in blocks:
        if np.isin(block, (0, 1)).all() and (block.sum(axis=1) > 1).any():
            left, right = np.triu_indices(block.shape[1], 1)
            every.append((block, block, left, right, (block.T @ block)[left, right]))
    if not every:
        return []
    held = np.concatenate([counts for *_, counts in every])
    kept = np.argsort(-held, kind="stable")[:MAX_PRODUCTS]
    is_kept = np.zeros(len(held), dtype=np.bool_)
    is_kept[kept[held[kept] >= MIN_ITEMS]] = True
    starts = np.cumsum([len(counts) for *_, counts in every])[:-1]
    products = [
        one[:, left[mine]] * other[:, right[mine]]
        for (one, other, left, right, _), mine in zip(every, np.split(is_kept, starts), strict=True)
    ]
    return [np.concatenate(products, axis=1)]


def _encoded(column: pa.Array[Any], place: str) -> NDArray[np.float32]:
    kind = column.type
    if column.null_count:
        raise ValueError(f"{place}: expected no nulls, found {column.null_count}")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _close_to_centres(column.to_numpy(zero_copy_only=False).astype(np.float32))
    values: pa.Array[Any]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        rows = pc.list_parent_indices(column).to_numpy()
        values = pc.list_flatten(column)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        rows, values = np.arange(len(column)), column
    else:
        raise ValueError(f"{place}: expected numbers, strings or lists of these, found {kind}")
    categories: Any = pc.dictionary_encode(values)
    count = len(categories.dictionary)
    if count > MAX_CATEGORIES:
        raise ValueError(
            f"{place}: expected at most {MAX_CATEGORIES} categories, found {count}; read it as "
            "text instead"
        )
    encoded = np.zeros((len(column), count), dtype=np.float32)
    encoded[rows, categories.indices.to_numpy()] = 1.0
    return encoded


def _close_to_centres(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(-((v - c) / width)^2) for evenly spaced centres c."""
    low, high = float(values.min()), float(values.max())
    centres = np.linspace(low, high, NUM_CENTRES, dtype=np.float32)
    width = max((high - low) / (1.3 * NUM_CENTRES), 1e-6)
    return np.exp(-np.square((values[:, None] - centres) / width)).astype(np.float32)
