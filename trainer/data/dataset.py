"""A data folder, opened and checked.

The folder holds `interactions/part-*.parquet` (one row an impression, in order of time over all
parts), `items.parquet` and, where a feature needs it, `users.parquet`. Opening checks everything
that footers and the two small files tell; the content of the log is checked wherever it is read.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data import decode
from trainer.data.block import FeatureColumns, RowBlock
from trainer.data.entity_table import EntityTable
from trainer.data.errors import DataError, Place
from trainer.data.parts import InteractionParts, Piece
from trainer.data.ragged import Ragged
from trainer.data.schema import DatasetSchema, RowRange, Split, Splits, TimesSplit


class Dataset:
    """A checked data folder; build it with :meth:`open`.

    Attributes:
        folder: on disk.
        schema: roles of the columns.
        parts: of the log.
        items: static columns of the items.
        users: static columns of the users, None when there is no users.parquet.

    Example::

        dataset = Dataset.open(Path("data/movielens1m"), schema)
        splits = dataset.split(GlobalTimeSplit())
        likes = dataset.read(splits.test, ["like"])["like"]
    """

    def __init__(
        self,
        folder: Path,
        schema: DatasetSchema,
        parts: InteractionParts,
        items: EntityTable,
        users: EntityTable | None,
    ) -> None:
        self.folder = folder
        self.schema = schema
        self.parts = parts
        self.items = items
        self.users = users
        self._features = [f for f in schema.features if f.source == "interactions"]
        self._joins_users = any(f.source == "users" for f in schema.features)
        columns = [schema.item, schema.time, *(f.name for f in self._features), *schema.labels]
        columns += [history.name for history in schema.histories]
        if self._joins_users:
            columns.append(schema.user)
        self._columns = list(dict.fromkeys(columns))

    @classmethod
    def open(cls, folder: Path, schema: DatasetSchema) -> Dataset:
        """Open a folder and check layout, columns, types, parts, items and users.

        Raises:
            DataError: naming file, column, what was expected and found, and what to do.
        """
        if not folder.is_dir():
            raise DataError(
                f"{folder}: expected a data folder, found none; write it with `farewell data`"
            )
        parts = InteractionParts(folder / "interactions", schema)
        items = EntityTable(folder / "items.parquet", schema, source="items")
        users_path = folder / "users.parquet"
        users = None
        if users_path.is_file() or any(f.source == "users" for f in schema.features):
            users = EntityTable(users_path, schema, source="users")
        return cls(folder, schema, parts, items, users)

    @property
    def num_rows(self) -> int:
        """Impressions in the log."""
        return self.parts.num_rows

    @property
    def num_items(self) -> int:
        """Items in items.parquet."""
        return len(self.items)

    @property
    def item_ids(self) -> NDArray[np.int64]:
        """Ids in the order of items.parquet, int64 (num_items,)."""
        return self.items.ids

    def item_rows(self, item_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the item row of each id, int64.

        Raises:
            DataError: naming the first unknown id.
        """
        place = Place(self.items.part.path, self.schema.item)
        rows = self.items.index.rows(item_ids)
        if rows.size and rows.min() < 0:
            unknown = item_ids[rows < 0]
            raise place.error(
                expected="every id that is asked for",
                found=f"{unknown.size} unknown ids, the first {unknown.flat[0]}",
                mend="add them to the file",
            )
        return rows.astype(np.int64)

    def split(self, split: Split) -> Splits:
        """Cut the log by time; rows with equal times never lie in two parts.

        Raises:
            DataError: when a part would be empty.
        """
        if isinstance(split, TimesSplit):
            train_stop, valid_stop = map(self._first_row, (split.valid_from, split.test_from))
        else:
            train_stop = self._next_time(int(self.num_rows * split.train))
            valid_stop = self._next_time(int(self.num_rows * (split.train + split.valid)))
        splits = Splits(
            train=RowRange(0, train_stop),
            valid=RowRange(train_stop, valid_stop),
            test=RowRange(valid_stop, self.num_rows),
        )
        if min(len(splits.train), len(splits.valid), len(splits.test)) == 0:
            raise DataError(
                f"{self.folder}: expected rows in train, valid and test, found {splits.train}, "
                f"{splits.valid}, {splits.test}; too few distinct times in column "
                f"{self.schema.time!r} for {split}"
            )
        return splits

    def _next_time(self, border: int) -> int:
        """Return the first row from `border` on whose time differs from that of the row before."""
        border = max(border, 1)
        before = int(self._times(RowRange(border - 1, border))[0])
        for piece in self.parts.pieces(RowRange(border, self.num_rows)):
            later = self._times(piece.rows) != before
            if later.any():
                return piece.rows.start + int(np.argmax(later))
        return self.num_rows

    def _first_row(self, time: int) -> int:
        """Return the first row from `time` on."""
        return bisect.bisect_left(
            range(self.num_rows),
            time,
            key=lambda row: int(self._times(RowRange(row, row + 1))[0]),
        )

    def _times(self, rows: RowRange) -> NDArray[Any]:
        return self.read(rows, [self.schema.time])[self.schema.time]

    def read(self, rows: RowRange, columns: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Read columns of single values as they stand in the files, one value a row of the log.

        A column of the interactions is taken from there; others are joined from items.parquet or
        users.parquet. A feature comes from the file that the schema names.

        Raises:
            DataError: when no file has a column, or on a null.
        """
        sources = {name: self._source(name) for name in columns}
        own = [name for name, entity in sources.items() if entity is None]
        entities = {entity.source: entity for entity in sources.values() if entity is not None}
        id_columns = {"items": self.schema.item, "users": self.schema.user}
        keys = [id_columns[source] for source in entities]
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in {*own, *keys}}
        for piece in self.parts.pieces(rows):
            table = piece.read(list(found))
            for name, arrays in found.items():
                place = Place(piece.part.path, name, piece.first_row_in_file)
                arrays.append(decode.scalars(table.column(name), place))
        log: dict[str, NDArray[Any]] = {
            name: np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
            for name, arrays in found.items()
        }
        entity_rows = {}
        for source, entity in entities.items():
            ids = log[id_columns[source]]
            place = Place(self.folder / "interactions", id_columns[source], rows.start)
            entity_rows[source] = decode.known_rows(
                entity.index.rows(ids), ids, place, file=entity.part.path.name
            )
        return {
            name: log[name] if entity is None else entity.column(name)[entity_rows[entity.source]]
            for name, entity in sources.items()
        }

    def _source(self, column: str) -> EntityTable | None:
        """Return the table that holds a column, None for the log."""
        tables = {"items": self.items, "users": self.users}
        for feature in self.schema.features:
            if feature.name == column and feature.source != "interactions":
                return tables[feature.source]
        if column in self.parts.parts[0].schema.names:
            return None
        for table in tables.values():
            if table is not None and column in table.part.schema.names:
                return table
        raise DataError(
            f"{self.folder}: column {column!r}: expected it in interactions, items.parquet or "
            "users.parquet, found it in none; write it or ask for another"
        )

    def block(self, rows: RowRange) -> RowBlock:
        """Read and check the columns that training needs.

        Raises:
            DataError: on the first value that breaks the contract.
        """
        blocks = []
        last_time: int | None = None
        for piece in self.parts.pieces(rows):
            block, last_time = self._decode(piece, last_time)
            blocks.append(block)
        return RowBlock.concatenate(blocks)

    def validate(self) -> None:
        """Read the whole log once, a row group at a time, and check every value and the order.

        Raises:
            DataError: on the first value that breaks the contract.
        """
        last_time: int | None = None
        groups = list(dict.fromkeys([self.schema.user_group, self.schema.query_group]))
        for piece in self.parts.pieces(RowRange(0, self.num_rows)):
            _, last_time = self._decode(piece, last_time)
            self.read(piece.rows, groups)  # refuses nulls, which would be a group of their own

    def _decode(self, piece: Piece, last_time: int | None) -> tuple[RowBlock, int]:
        """Return the rows of a piece, checked, and their last time."""
        schema = self.schema
        table = piece.read(self._columns)

        def place(column: str) -> Place:
            return Place(piece.part.path, column, piece.first_row_in_file)

        def single(column: str) -> NDArray[Any]:
            return decode.scalars(table.column(column), place(column))

        times = decode.sorted_times(single(schema.time), place(schema.time), after=last_time)
        item_ids = single(schema.item)
        item = decode.known_rows(
            self.items.index.rows(item_ids), item_ids, place(schema.item), file="items.parquet"
        )
        user = None
        if self._joins_users and self.users is not None:
            user_ids = single(schema.user)
            user = decode.known_rows(
                self.users.index.rows(user_ids), user_ids, place(schema.user), file="users.parquet"
            )
        labels = [decode.label_values(single(name), place(name)) for name in schema.labels]
        block = RowBlock(
            row=np.arange(piece.rows.start, piece.rows.stop),
            item=item,
            user=user,
            features=FeatureColumns.decode(
                table, self._features, path=piece.part.path, first_row=piece.first_row_in_file
            ),
            history=Ragged.zip(
                [
                    self._history(table.column(sequence.name), place(sequence.name), kind)
                    for kind, sequence in enumerate(schema.histories)
                ]
            )
            if schema.histories
            else None,
            labels=np.stack(labels, axis=1),
        )
        return block, int(times[-1])

    def _history(self, column: Any, place: Place, kind: int) -> Ragged:
        raw = decode.lists(column, place)
        longest = self.schema.histories[kind].max_length
        if len(raw) and raw.lengths.max() > longest:
            at = int(np.argmax(raw.lengths > longest))
            raise place.error(
                expected=f"lists of at most {longest} items",
                found=f"one of {raw.lengths[at]}",
                row=at,
                mend="keep the latest items of each list, or raise max_length",
            )
        rows = decode.known_rows(
            self.items.index.rows(raw.values),
            raw.values,
            place,
            file="items.parquet",
            offsets=raw.offsets,
        )
        return Ragged(rows * np.int64(len(self.schema.histories)) + kind, raw.offsets)
