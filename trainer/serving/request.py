"""Columns of a request or a parquet file, checked, to the batch that the network reads.

A column is an array (one value a row) or a `Ragged` (one list a row). Which there must be, the
schema says; whatever is wrong ends as a `DataError` that names column, row, expected and found.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from trainer.batch import Batch
from trainer.data import decode
from trainer.data.batch_builder import keyed
from trainer.data.entity_table import EntityTable
from trainer.data.errors import DataError, Place
from trainer.data.parts import INTEGER, INTEGER_LIST, NUMBER, TYPE_CHECKS
from trainer.data.ragged import Ragged
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, ItemSequence
from trainer.serving.identity import RowsOfItems

REQUEST = Path("request")
"""What messages call a request that is no file."""

Columns = dict[str, NDArray[Any] | Ragged]


@dataclass(frozen=True)
class RequestReader:
    """Turns columns into batches.

    Args:
        schema: of the log that was trained on.
        items: rows that stand for an item, by feature.
        item_table: static features of items, where the schema has some.
        user_table: of users.
    """

    schema: DatasetSchema
    items: Mapping[str, RowsOfItems]
    item_table: EntityTable | None
    user_table: EntityTable | None

    def from_dict(self, request: Mapping[str, Any]) -> tuple[Columns, bool]:
        """Columns of a request, and whether it is a single impression.

        Raises:
            DataError: on a column that is missing, unknown, or of a wrong type or length.
        """
        schema = self.schema
        kinds = self._kinds()
        known = {*kinds, *schema.labels, schema.time, schema.user_group, schema.query_group}
        for name in request:
            if name not in known and name != schema.created_at:
                near = difflib.get_close_matches(str(name), known, n=1)
                raise DataError(
                    f"request: column {str(name)!r}: expected one of {', '.join(sorted(known))}"
                    + (f"; did you mean {near[0]!r}?" if near else "; leave it out")
                )
        self._require(request)
        item = _numbers(request[schema.item], INTEGER, Place(REQUEST, schema.item))
        num_rows = 1 if item.ndim == 0 else len(item)
        columns = {
            name: _column(request[name], kind, num_rows, Place(REQUEST, name))
            for name, kind in kinds.items()
            if name in request
        }
        return columns, item.ndim == 0

    def from_table(self, table: pa.Table, path: Path, first_row: int = 0) -> Columns:
        """Columns of a parquet file; those that scoring does not read are left alone.

        Raises:
            DataError: on a column that is missing or of a wrong type, and on nulls.
        """
        self._require(table.column_names, path)
        columns: Columns = {}
        for name, kind in self._kinds().items():
            if name not in table.column_names:
                continue
            place = Place(path, name, first_row)
            if not TYPE_CHECKS[kind](table.schema.field(name).type):
                raise place.error(
                    expected=kind, found=str(table.schema.field(name).type), mend="cast the column"
                )
            read = decode.lists if kind == INTEGER_LIST else decode.scalars
            columns[name] = read(table.column(name), place)
        return columns

    def wanted(self, available: Iterable[str]) -> list[str]:
        """Those of some columns that scoring reads."""
        kinds = self._kinds()
        return [name for name in available if name in kinds]

    def batch(self, columns: Columns, path: Path = REQUEST, first_row: int = 0) -> Batch:
        """The batch of these rows, in their order; labels are zeros.

        Raises:
            DataError: on values out of range, and on items or users that are not known.
        """
        schema = self.schema

        def place(name: str) -> Place:
            return Place(path, name, first_row)

        item_ids = _array(columns[schema.item]).astype(np.int64)
        num_rows = len(item_ids)
        histories = [_history(_ragged(columns[h.name]), h, place(h.name)) for h in schema.histories]
        kinds = [
            Ragged(np.full(len(history.values), kind), history.offsets)
            for kind, history in enumerate(histories)
        ]
        past = Ragged.zip(histories) if histories else _no_lists(num_rows)
        distinct, inverse = np.unique(np.concatenate([item_ids, past.values]), return_inverse=True)
        rows = {
            feature: items.rows(distinct, Place(path, f"{schema.item}, histories"))
            for feature, items in self.items.items()
        }
        joined = self._joined(columns, item_ids, place)
        dense = [
            joined[f.name] if f.name in joined else _dense(columns[f.name], f, place(f.name))
            for f in schema.dense_features
        ]
        pooled: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {}
        for feature in schema.pooled_features:
            name = feature.name
            pooled[name] = (
                joined[name]
                if name in joined
                else _pooled(columns[name], feature, num_rows, place(name))
            )
        return Batch(
            dense_BF=torch.from_numpy(
                np.stack(dense, axis=1) if dense else np.zeros((num_rows, 0), dtype=np.float32)
            ),
            pooled=keyed(pooled, stride=num_rows),
            items=keyed(rows, stride=len(distinct)),
            candidate_B=torch.from_numpy(inverse[:num_rows]),
            history_T=torch.from_numpy(inverse[num_rows:]),
            history_kind_T=torch.from_numpy(
                Ragged.zip(kinds).values if kinds else np.zeros(0, dtype=np.int64)
            ),
            history_offsets=torch.from_numpy(past.offsets),
            labels_BN=torch.zeros(num_rows, len(schema.labels)),
            row_B=torch.arange(num_rows),
        )

    def _kinds(self) -> dict[str, str]:
        """Every column that scoring may read, with its type (a key of `TYPE_CHECKS`)."""
        schema = self.schema
        wanted = {Categorical: INTEGER, Bag: INTEGER_LIST, Dense: NUMBER}
        return {
            schema.item: INTEGER,
            schema.user: INTEGER,
            **{history.name: INTEGER_LIST for history in schema.histories},
            **{feature.name: wanted[type(feature)] for feature in schema.features},
        }

    def _require(self, names: Iterable[str], path: Path = REQUEST) -> None:
        """Check that all columns are there that can't be joined.

        Raises:
            DataError: naming the missing column.
        """
        schema, present = self.schema, set(names)
        kinds = self._kinds()
        needed = [schema.item, *(history.name for history in schema.histories)]
        needed += [f.name for f in schema.features if f.source == "interactions"]
        if any(f.source == "users" and f.name not in present for f in schema.features):
            needed.append(schema.user)
        for name in needed:
            if name not in present:
                raise Place(path, name).error(
                    expected=kinds[name],
                    found=f"no such column (there are {', '.join(sorted(present)) or 'none'})",
                    mend="a model reads at scoring what it was trained on: add it",
                )

    def _joined(self, columns: Columns, item_ids: NDArray[np.int64], place: Any) -> dict[str, Any]:
        """Static features that the columns do not bring, by item and user."""
        found: dict[str, Any] = {}
        for source, table, column in (
            ("items", self.item_table, self.schema.item),
            ("users", self.user_table, self.schema.user),
        ):
            missing = [
                f for f in self.schema.features if f.source == source and f.name not in columns
            ]
            if not missing:
                continue
            assert table is not None
            ids = item_ids if source == "items" else _array(columns[column])
            rows = table.index.rows(ids.astype(np.int64))
            if len(rows) and rows.min() < 0:
                at = int(np.argmax(rows < 0))
                raise place(column).error(
                    expected=f"ids whose {', '.join(f.name for f in missing)} the export holds",
                    found=str(ids[at]),
                    row=at,
                    mend="give these features as columns of the request",
                )
            taken = table.features.take(rows)
            ones = np.ones(len(rows), dtype=np.int64)
            for feature in missing:
                if isinstance(feature, Dense):
                    found[feature.name] = taken.dense[feature.name]
                elif isinstance(feature, Bag):
                    bag = taken.bags[feature.name]
                    found[feature.name] = (bag.values, bag.lengths)
                else:
                    found[feature.name] = (taken.ids[feature.name], ones)
        return found


def _column(value: Any, kind: str, num_rows: int, place: Place) -> NDArray[Any] | Ragged:
    return (_lists if kind == INTEGER_LIST else _scalars)(value, kind, num_rows, place)


def _scalars(value: Any, kind: str, num_rows: int, place: Place) -> NDArray[Any]:
    """One value a row; a single one stands for all rows."""
    array = _numbers(value, kind, place)
    if array.ndim == 0:
        return np.full(num_rows, array)
    if array.shape != (num_rows,):
        raise place.error(
            expected=f"{num_rows} values (as many as items), or one for all",
            found=f"shape {array.shape}",
            mend="give as many as there are rows",
        )
    return array


def _lists(value: Any, kind: str, num_rows: int, place: Place) -> Ragged:
    """One list a row; a flat list stands for all rows."""
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise place.error(expected=kind, found=repr(value)[:60], mend="give a list of integers")
    if not len(value) or np.ndim(value[0]) == 0:
        flat = _numbers(value, kind, place) if len(value) else np.zeros(0, dtype=np.int64)
        return Ragged.from_lengths(
            np.tile(flat.astype(np.int64), num_rows), np.full(num_rows, len(flat))
        )
    if len(value) != num_rows:
        raise place.error(
            expected=f"{num_rows} lists (as many as items), or a flat one for all",
            found=f"{len(value)} lists",
            mend="give as many as there are rows",
        )
    try:
        lengths = np.fromiter(map(len, value), dtype=np.int64, count=num_rows)
        joined = list(chain.from_iterable(value))
    except TypeError as error:
        raise place.error(
            expected="lists of integers", found=str(error), mend="give a list in every row"
        ) from error
    values = _numbers(joined, kind, place) if joined else np.zeros(0, dtype=np.int64)
    return Ragged.from_lengths(values.astype(np.int64), lengths)


def _numbers(value: Any, kind: str, place: Place) -> NDArray[Any]:
    allowed = "iuf" if kind == NUMBER else "iu"
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise place.error(expected=kind, found=str(error), mend="give one for every row") from error
    if array.dtype.kind not in allowed or array.dtype == np.uint64:
        found = "values of several types, or None" if array.dtype == object else str(array.dtype)
        raise place.error(expected=kind, found=found, mend="give numbers, and one for every row")
    return array


def _history(history: Ragged, sequence: ItemSequence, place: Place) -> Ragged:
    if len(history) and history.lengths.max() > sequence.max_length:
        at = int(np.argmax(history.lengths))
        raise place.error(
            expected=f"lists of at most {sequence.max_length} items",
            found=f"one of {history.lengths[at]}",
            row=at,
            mend="keep the latest items of each list",
        )
    return Ragged(history.values.astype(np.int64), history.offsets)


def _dense(column: NDArray[Any] | Ragged, feature: Dense, place: Place) -> NDArray[np.float32]:
    return decode.dense_values(_array(column), place, transform=feature.transform)


def _pooled(
    column: NDArray[Any] | Ragged, feature: Categorical | Bag, num_rows: int, place: Place
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    settings: dict[str, Any] = {"cardinality": feature.cardinality, "hashed": feature.hashed}
    if isinstance(feature, Bag):
        bag = _ragged(column)
        ids = decode.feature_ids(bag.values, place, offsets=bag.offsets, **settings)
        return ids, bag.lengths
    ids = decode.feature_ids(_array(column), place, **settings)
    return ids, np.ones(num_rows, dtype=np.int64)


def _array(column: NDArray[Any] | Ragged) -> NDArray[Any]:
    assert not isinstance(column, Ragged)
    return column


def _ragged(column: NDArray[Any] | Ragged) -> Ragged:
    assert isinstance(column, Ragged)
    return column


def _no_lists(num_rows: int) -> Ragged:
    return Ragged(np.zeros(0, dtype=np.int64), np.zeros(num_rows + 1, dtype=np.int64))
