"""`items.parquet` and `users.parquet`: small beside the log, held in memory and joined by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trainer.data import decode
from trainer.data.block import FeatureColumns
from trainer.data.errors import DataError, Place
from trainer.data.id_index import IdIndex
from trainer.data.parts import ParquetPart, required_columns
from trainer.data.schema import DatasetSchema


class EntityTable:
    """Static columns of all items or all users.

    Args:
        path: of the parquet file.
        schema: roles of the columns.
        source: which of the two files it is.

    Attributes:
        ids: int64 (N,), in file order; the position is the entity's row.
        index: id -> row.
        features: those that the schema takes from this file.

    Raises:
        DataError: on a column that is missing or of a wrong type, a repeated id, or bad values.
    """

    def __init__(
        self, path: Path, schema: DatasetSchema, *, source: Literal["items", "users"]
    ) -> None:
        self.part = ParquetPart.open(path)
        self.source = source
        required = required_columns(schema, source)
        for column, wanted in required:
            self.part.require(column, wanted)
        table = self.part.read(sorted({column for column, _ in required}))
        if table.num_rows == 0:
            raise DataError(f"{path}: expected at least one row, found none; write the {source}")
        id_column = schema.item if source == "items" else schema.user
        place = Place(path, id_column)
        self.ids: NDArray[np.int64] = decode.scalars(table.column(id_column), place).astype(
            np.int64
        )
        self._refuse_repeated(place)
        self.index = IdIndex(self.ids)
        self.features = FeatureColumns.decode(
            table, [f for f in schema.features if f.source == source], path=path
        )

    def __len__(self) -> int:
        """Number of entities."""
        return len(self.ids)

    def column(self, name: str) -> NDArray[Any]:
        """Read a column of single values, one an entity, in file order.

        Raises:
            DataError: on a null.
        """
        return decode.scalars(self.part.read([name]).column(name), Place(self.part.path, name))

    def _refuse_repeated(self, place: Place) -> None:
        distinct, first = np.unique(self.ids, return_index=True)
        if len(distinct) == len(self.ids):
            return
        repeated = np.ones(len(self.ids), dtype=bool)
        repeated[first] = False
        at = int(np.argmax(repeated))
        raise place.error(
            expected="each id once",
            found=f"{len(self.ids) - len(distinct)} repeated ids, the first {self.ids[at]} again",
            row=at,
            mend="keep one row an id",
        )
