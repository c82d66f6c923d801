"""Item embeddings on disk: a parquet file of `item_id` and a list column."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tokenization.base import Embeddings, check_embeddings
from tokenization.list_columns import group_rows, list_column

_MADE = "farewell"  # key of the file's metadata


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingTable:
    """One embedding an item.

    Args:
        item_ids: int64 `(N,)`.
        embeddings: float32 `(N, D)`.
        made: how they were made, as JSON values; kept in the file's metadata.
    """

    item_ids: NDArray[np.int64]
    embeddings: Embeddings
    made: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write `item_id` int64 and `embedding` list<float32>, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        dim = self.embeddings.shape[1]
        offsets = np.arange(len(self.item_ids) + 1, dtype=np.int64) * dim
        table = pa.table(
            {
                "item_id": pa.array(self.item_ids, type=pa.int64()),
                "embedding": list_column(self.embeddings.reshape(-1), offsets),
            }
        ).replace_schema_metadata({_MADE: json.dumps(dict(self.made))})
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        pq.write_table(table, partial, row_group_size=group_rows(dim))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, *, column: str = "embedding") -> EmbeddingTable:
        """Read `item_id` and a list column of any parquet file.

        Args:
            path: the file, e.g. one that `save` wrote, or an `items.parquet`.
            column: its list column of floats, of one length in all rows.

        Raises:
            ValueError: no such file or column, another type, nulls, lists of unequal lengths,
                NaN, or an item that occurs twice.
        """
        table = read_items(path, column)
        field = table.schema.field(column)
        value_type = getattr(field.type, "value_type", None)
        if value_type is None or not pa.types.is_floating(value_type):
            raise ValueError(
                f"{path}, column {column}: expected lists of floats, found {field.type}"
            )
        lengths = pc.unique(pc.list_value_length(table[column])).to_pylist()
        if len(lengths) != 1:
            raise ValueError(
                f"{path}, column {column}: expected lists of one length, found lengths "
                f"{sorted(lengths)[:5]}"
            )
        values = pc.list_flatten(table[column])
        if values.null_count:
            raise ValueError(
                f"{path}, column {column}: expected no nulls in the lists, found "
                f"{values.null_count}"
            )
        embeddings = check_embeddings(
            values.to_numpy().reshape(table.num_rows, lengths[0]), name=f"{path}, column {column}"
        )
        ids = table["item_id"].to_numpy().astype(np.int64)
        return cls(item_ids=ids, embeddings=embeddings, made=read_made(path))


def read_made(path: Path) -> dict[str, Any]:
    """How the embeddings of a file were made; empty where `EmbeddingTable` did not write it.

    Raises:
        ValueError: when it is no whole parquet file.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a whole parquet file, found {error}") from error
    made: dict[str, Any] = json.loads(metadata.get(_MADE.encode(), b"{}"))
    return made


def read_items(path: Path, column: str) -> pa.Table:
    """Read columns `item_id` and `column`, both without nulls, each item once.

    Raises:
        ValueError: no such file or column, no rows, ids that are no integers, nulls, duplicates.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        names = pq.read_schema(path).names
        missing = [name for name in ("item_id", column) if name not in names]
        if missing:
            raise ValueError(f"{path}: expected column {missing[0]!r}, found {', '.join(names)}")
        table = pq.read_table(path, columns=list(dict.fromkeys(["item_id", column])))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a whole parquet file, found {error}") from error
    if table.num_rows == 0:
        raise ValueError(f"{path}: expected at least one item, found no rows")
    for name in ("item_id", column):
        if table[name].null_count:
            raise ValueError(
                f"{path}, column {name}: expected no nulls, found {table[name].null_count}"
            )
    if not pa.types.is_integer(table.schema.field("item_id").type):
        raise ValueError(
            f"{path}, column item_id: expected integers, found {table.schema.field('item_id').type}"
        )
    repeated = table.num_rows - pc.count_distinct(table["item_id"]).as_py()
    if repeated:
        raise ValueError(f"{path}, column item_id: expected each item once, found {repeated} again")
    return table
