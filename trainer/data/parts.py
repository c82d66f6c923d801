"""Files of a data folder: parquet footers, column types, and where each row lies."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.errors import DataError, Place
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, RowRange, Source


@dataclass(frozen=True)
class ParquetPart:
    """One parquet file with its footer.

    Attributes:
        path: of the file.
        metadata: parquet footer.
        schema: arrow types of the columns.
    """

    path: Path
    metadata: pq.FileMetaData
    schema: pa.Schema

    @classmethod
    def open(cls, path: Path) -> ParquetPart:
        """Read the footer.

        Raises:
            DataError: when the file is missing, truncated or not parquet.
        """
        if not path.is_file():
            raise DataError(f"{path}: expected a parquet file, found none; write it")
        try:
            with pq.ParquetFile(path) as file:
                return cls(path, file.metadata, file.schema_arrow)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: expected a parquet file, found one that is truncated or not parquet "
                f"({_first_line(error)}); write it again"
            ) from error

    def read(self, columns: Sequence[str], row_groups: Sequence[int] | None = None) -> pa.Table:
        """Read columns of some row groups, or of all.

        Raises:
            DataError: when the pages can't be decoded.
        """
        groups = range(self.metadata.num_row_groups) if row_groups is None else row_groups
        try:
            with pq.ParquetFile(self.path, metadata=self.metadata) as file:
                return file.read_row_groups(list(groups), columns=list(columns))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{self.path}: expected readable row groups {list(groups)[:3]}..., found a file "
                f"that is truncated or damaged ({_first_line(error)}); write it again"
            ) from error

    def require(self, column: str, wanted: str) -> None:
        """Check that a column is there with a fitting type.

        Args:
            column: name.
            wanted: key of `TYPE_CHECKS`.

        Raises:
            DataError: when it is missing or of another type.
        """
        place = Place(self.path, column)
        if column not in self.schema.names:
            near = difflib.get_close_matches(column, self.schema.names, n=1)
            raise place.error(
                expected=wanted,
                found=f"no such column (the file has {', '.join(self.schema.names)})",
                mend=(f"did you mean {near[0]!r}? " if near else "")
                + "rename it in the file or in the schema",
            )
        found = self.schema.field(column).type
        if not TYPE_CHECKS[wanted](found):
            raise place.error(expected=wanted, found=str(found), mend="cast the column")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_integer(kind: pa.DataType) -> bool:
    # uint64 does not fit int64, in which ids travel
    return pa.types.is_integer(kind) and kind != pa.uint64()


def _is_number(kind: pa.DataType) -> bool:
    return _is_integer(kind) or pa.types.is_floating(kind)


def _is_integer_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_integer(kind.value_type)


INTEGER = "an integer column"
NUMBER = "an integer or float column"
INTEGER_LIST = "a list<int32> or list<int64> column"
LABEL = "an integer, float or bool column of 0 and 1"
SECONDS = "an integer column (seconds)"

TYPE_CHECKS: dict[str, Callable[[pa.DataType], bool]] = {
    INTEGER: _is_integer,
    NUMBER: _is_number,
    INTEGER_LIST: _is_integer_list,
    LABEL: lambda kind: _is_number(kind) or pa.types.is_boolean(kind),
    SECONDS: _is_integer,
}


def required_columns(schema: DatasetSchema, source: Source) -> list[tuple[str, str]]:
    """Return the columns that a file must have, each with its type (a key of `TYPE_CHECKS`)."""
    columns: list[tuple[str, str]] = []
    if source == "interactions":
        columns += [(schema.user, INTEGER), (schema.item, INTEGER), (schema.time, SECONDS)]
        columns += [(schema.user_group, INTEGER), (schema.query_group, INTEGER)]
        columns += [(label, LABEL) for label in schema.labels]
        columns += [(history.name, INTEGER_LIST) for history in schema.histories]
    elif source == "items":
        columns.append((schema.item, INTEGER))
        if schema.created_at is not None:
            columns.append((schema.created_at, SECONDS))
    else:
        columns.append((schema.user, INTEGER))
    wanted = {Categorical: INTEGER, Bag: INTEGER_LIST, Dense: NUMBER}
    columns += [(f.name, wanted[type(f)]) for f in schema.features if f.source == source]
    return columns


@dataclass(frozen=True)
class Piece:
    """Rows of one row group that a range covers.

    Attributes:
        part: file.
        row_group: index in the file.
        skip: rows of the row group before the first wanted one.
        first_row_in_file: of the wanted rows, for messages.
        rows: wanted rows, as positions in the log.
    """

    part: ParquetPart
    row_group: int
    skip: int
    first_row_in_file: int
    rows: RowRange

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read the wanted rows of some columns."""
        table = self.part.read(columns, [self.row_group])
        return table.slice(self.skip, len(self.rows))


class InteractionParts:
    """The parts of the log in order of their names, seen as one run of rows 0..N-1.

    Args:
        folder: that holds `*.parquet`.
        schema: roles of the columns.

    Raises:
        DataError: on no parts, an empty part, parts with different columns, a column that is
            missing or of a wrong type, and, where footers hold statistics, on unsorted time.
    """

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        paths = sorted(folder.glob("*.parquet"))
        if not paths:
            raise DataError(
                f"{folder}: expected interactions/part-00000.parquet and so on, found no parquet "
                "file; write the log there"
            )
        self.parts = [ParquetPart.open(path) for path in paths]
        self._check(schema)
        groups = [
            (part, group)
            for part in range(len(self.parts))
            for group in range(self.parts[part].metadata.num_row_groups)
        ]
        self._part_of_group = np.array([part for part, _ in groups])
        self._index_in_part = np.array([group for _, group in groups])
        rows_of_group = [self.parts[p].metadata.row_group(g).num_rows for p, g in groups]
        self.group_starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(rows_of_group)])
        self._part_starts = np.concatenate(
            [[0], np.cumsum([part.metadata.num_rows for part in self.parts])]
        )
        self._check_time_between_groups(schema.time)

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return int(self.group_starts[-1])

    def pieces(self, rows: RowRange) -> Iterator[Piece]:
        """Cut a range at the borders of row groups.

        Raises:
            ValueError: when the range leaves the log.
        """
        if not 0 <= rows.start <= rows.stop <= self.num_rows:
            raise ValueError(
                f"rows {rows.start} to {rows.stop} asked for, the log has {self.num_rows}"
            )
        group = int(np.searchsorted(self.group_starts, rows.start, side="right")) - 1
        start = rows.start
        while start < rows.stop:
            stop = min(rows.stop, int(self.group_starts[group + 1]))
            if stop > start:
                part = int(self._part_of_group[group])
                yield Piece(
                    part=self.parts[part],
                    row_group=int(self._index_in_part[group]),
                    skip=start - int(self.group_starts[group]),
                    first_row_in_file=start - int(self._part_starts[part]),
                    rows=RowRange(start, stop),
                )
            start = stop
            group += 1

    def _check(self, schema: DatasetSchema) -> None:
        first = self.parts[0]
        for part in self.parts:
            if part.metadata.num_rows == 0:
                raise DataError(
                    f"{part.path}: expected at least one row, found an empty part; delete the file"
                )
            for column, wanted in required_columns(schema, "interactions"):
                part.require(column, wanted)
            for name in sorted({*first.schema.names, *part.schema.names}):
                kinds = [
                    str(p.schema.field(name).type) if name in p.schema.names else "no such column"
                    for p in (first, part)
                ]
                if kinds[0] != kinds[1]:
                    raise Place(part.path, name).error(
                        expected=f"{kinds[0]} as in {first.path.name}",
                        found=kinds[1],
                        mend="write all parts with the same columns and types",
                    )

    def _check_time_between_groups(self, time: str) -> None:
        highest_before: int | None = None
        for part in self.parts:
            footer = part.metadata
            names = [footer.schema.column(i).path for i in range(footer.num_columns)]
            at = names.index(time)
            for group in range(footer.num_row_groups):
                statistics = footer.row_group(group).column(at).statistics
                if statistics is None or not statistics.has_min_max:
                    highest_before = None
                    continue
                lowest, highest = statistics.min, statistics.max
                assert isinstance(lowest, int) and isinstance(highest, int)
                if highest_before is not None and lowest < highest_before:
                    raise Place(part.path, time).error(
                        expected="rows sorted by time",
                        found=f"{lowest} in row group {group} after {highest_before} before it",
                        mend="sort the whole log by time and write it again, "
                        "parts in order of their names",
                    )
                highest_before = highest
