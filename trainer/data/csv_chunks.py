"""A large text file of rows, read a block at a time with every value as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    """A file with known columns, plain or compressed (by its ending: `.gz`, `.bz2`).

    Args:
        path: of the file.
        columns: names of all columns, in order, or of those that are `wanted`.
        delimiter: between values.
        header: whether the first line names the columns.
        what: the file as its publisher calls it, for messages.
        max_rows: read so many rows from the start; None for all.
        wanted: `columns` are some of the header's, in any order, and others are skipped.
        quoted: values may stand in double quotes, and then hold delimiters.
    """

    path: Path
    columns: Sequence[str]
    delimiter: str
    header: bool
    what: str
    max_rows: int | None = None
    wanted: bool = False
    quoted: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without reading.

        Raises:
            ValueError: when there is no such file, or `max_rows` is below 1.
        """
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; expected {self.what}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}, expected at least 1, or None for all")

    def chunks(self) -> Iterator[pa.Table]:
        """Tables of text columns, at most `max_rows` rows in all.

        Raises:
            ValueError: when the columns are others, naming them; or a line has more or fewer.
        """
        left = self.max_rows
        try:
            for batch in self._open(self._names()):
                table = pa.Table.from_batches([batch]).rename_columns(list(self.columns))
                table = table if left is None else table.slice(0, left)
                yield table
                left = None if left is None else left - table.num_rows
                if left == 0:
                    return
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{self.path}: expected {self.what} with {len(self.columns)} columns in every "
                f"line, but: {error}"
            ) from error

    def place(self, column: str) -> str:
        """The column as messages name it."""
        return f"{self.path}, column {column!r}"

    def _names(self) -> list[str]:
        """Names of `columns` as the header spells them: some files have spaces around them."""
        if not self.header:
            return list(self.columns)
        spelled = {name.strip(): name for name in self._open(None).schema.names}
        self._check(list(spelled))
        return [spelled[name] for name in self.columns]

    def _open(self, names: list[str] | None) -> Any:
        return pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(
                column_names=None if self.header else names, block_size=BLOCK_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=self.delimiter, quote_char='"' if self.quoted else False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names or (), pa.string()),
                include_columns=names,
                strings_can_be_null=False,
            ),
        )

    def _check(self, found: list[str]) -> None:
        missing = [name for name in self.columns if name not in found]
        if found == list(self.columns) or (self.wanted and not missing):
            return
        others = [name for name in found if name not in self.columns and not self.wanted]
        raise ValueError(
            f"{self.path}: expected {self.what} with the columns {', '.join(self.columns)}; "
            f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(others) or 'none'}"
            + ("" if missing or others else f", order: {', '.join(found)}")
        )
