"""Writes a data set folder that either is complete or does not exist.

Everything goes to a temporary folder beside the target, which is renamed at the end. Layout:
`interactions/part-00000.parquet ...`, `items.parquet`, `users.parquet` and `manifest.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.data.ragged import Ragged
from trainer.data.schema import DatasetSchema

ROW_GROUP_ROWS = 65_536
PART_ROWS = 64 * ROW_GROUP_ROWS
MANIFEST = "manifest.json"

Progress = Callable[[int, int], None]
"""Called with rows written so far and rows in all."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set folder holds, as written to `manifest.json`.

    Attributes:
        name: of the data set.
        num_rows: impressions.
        num_users: users in users.parquet, 0 without that file.
        num_items: items in items.parquet.
        first_time: timestamp of the first row, in seconds.
        last_time: timestamp of the last row, in seconds.
        positives: sum of each label column.
        num_bytes: size of the parquet files.
        columns: file -> column -> Arrow type.
        source: where the data came from, e.g. package, version and sha256, or a simulator's seed.
        facts: numbers that only the writer of the data knows, e.g. the best possible AUC.
        created_by: `farewell` and its version.
    """

    name: str
    num_rows: int
    num_users: int
    num_items: int
    first_time: int
    last_time: int
    positives: dict[str, float]
    num_bytes: int
    columns: dict[str, dict[str, str]]
    source: dict[str, str]
    facts: dict[str, float]
    created_by: str


def ragged_column(lists: Ragged, *, is_wide: bool = False) -> pa.ListArray[Any]:
    """Build a list column of N rows; integers become int32, wide ones stay int64.

    Raises:
        ValueError: for integers beyond int32 that are not said to be wide.
    """
    flat = lists.values
    if np.issubdtype(flat.dtype, np.integer) and not is_wide:
        if flat.size and needs_int64(flat.min(), flat.max()):
            raise ValueError(f"lists: expected int32 values, found {flat.min()} to {flat.max()}")
        flat = flat.astype(np.int32)
    values: pa.Array[Any] = pa.array(flat)
    return pa.ListArray.from_arrays(pa.array(lists.offsets, type=pa.int32()), values)


def needs_int64(smallest: int, largest: int) -> bool:
    """Whether integers from `smallest` to `largest` are too wide for int32."""
    limits = np.iinfo(np.int32)
    return bool(smallest < limits.min or largest > limits.max)


class DatasetWriter:
    """Context manager that collects a data set and puts it in place when it is complete.

    Rows are written in the order given, in row groups of 65,536 and parts of 4,194,304 rows
    whatever the sizes of the chunks. Leaving the block by an exception, or without `finish`,
    removes what was written.

    Args:
        folder: target; an older data set there (recognised by its manifest) is replaced.
        schema: gives the name, the time column and the labels.
        source: recorded in the manifest.

    Raises:
        ValueError: when `folder` exists and is not a data set.

    Example::

        with DatasetWriter(Path("data/mine"), schema=SCHEMA, source={"file": "clicks.csv"}) as out:
            out.write_items(items)
            out.write_users(users)
            for chunk in chunks:
                out.write(chunk)
            out.finish()
    """

    def __init__(self, folder: Path, *, schema: DatasetSchema, source: Mapping[str, str]) -> None:
        if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
            raise ValueError(
                f"{folder}: exists and is no data set (it has no {MANIFEST}); "
                "choose another folder or remove it"
            )
        self._folder = folder
        self._schema = schema
        self._source = dict(source)
        self._temporary: Path | None = None
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._num_parts = 0
        self._rows_in_part = 0
        self._num_rows = 0
        self._entities = {"items": 0, "users": 0}
        self._columns: dict[str, dict[str, str]] = {}
        self._positives = dict.fromkeys(schema.labels, 0.0)
        self._times: list[int] = []

    def __enter__(self) -> DatasetWriter:
        """Make the temporary folder."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{self._folder.name}-"
        self._temporary = Path(tempfile.mkdtemp(dir=self._folder.parent, prefix=prefix))
        self._temporary.chmod(0o755)
        (self._temporary / "interactions").mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what is not in place."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def write_items(self, table: pa.Table) -> None:
        """Write items.parquet."""
        self._write_entities("items", table)

    def write_users(self, table: pa.Table) -> None:
        """Write users.parquet."""
        self._write_entities("users", table)

    def write(self, chunk: pa.Table) -> None:
        """Append impressions (all chunks have the same columns, times never fall).

        Raises:
            ValueError: when a time in the chunk lies before the row above it.
        """
        if chunk.num_rows == 0:
            return
        times = chunk[self._schema.time].to_numpy()
        if np.any(np.diff(times) < 0) or (self._times and times[0] < self._times[-1]):
            raise ValueError(
                f"{self._folder}: column {self._schema.time!r} falls within or between chunks; "
                "write impressions in time order"
            )
        self._times = [self._times[0] if self._times else int(times[0]), int(times[-1])]
        for label in self._positives:
            self._positives[label] += float(pc.sum(chunk[label]).as_py())
        self._num_rows += chunk.num_rows
        self._waiting.append(chunk)
        self._num_waiting += chunk.num_rows
        if self._num_waiting >= ROW_GROUP_ROWS:
            self._flush(self._num_waiting // ROW_GROUP_ROWS * ROW_GROUP_ROWS)

    def finish(self, facts: Mapping[str, float] | None = None) -> Manifest:
        """Write the rest and the manifest, then move the folder into place.

        Raises:
            ValueError: when there are no impressions or no items.
        """
        if self._num_rows == 0 or "items.parquet" not in self._columns:
            raise ValueError(f"{self._folder}: a data set needs impressions and items")
        self._flush(self._num_waiting)
        self._close_part()
        folder = self._open_folder()
        manifest = Manifest(
            name=self._schema.name,
            num_rows=self._num_rows,
            num_users=self._entities["users"],
            num_items=self._entities["items"],
            first_time=self._times[0],
            last_time=self._times[1],
            positives=self._positives,
            num_bytes=sum(path.stat().st_size for path in folder.rglob("*.parquet")),
            columns=self._columns,
            source=self._source,
            facts=dict(facts or {}),
            created_by=f"farewell {_version()}",
        )
        (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        self._move_into_place(folder)
        return manifest

    def _write_entities(self, name: str, table: pa.Table) -> None:
        pq.write_table(
            table,
            self._open_folder() / f"{name}.parquet",
            compression="zstd",
            row_group_size=ROW_GROUP_ROWS,
        )
        self._columns[f"{name}.parquet"] = _types(table)
        self._entities[name] = table.num_rows

    def _flush(self, num_rows: int) -> None:
        """Write the first `num_rows` waiting rows, a row group at a time."""
        if num_rows == 0:
            return
        waiting = pa.concat_tables(self._waiting)
        for start in range(0, num_rows, ROW_GROUP_ROWS):
            group = waiting.slice(start, min(ROW_GROUP_ROWS, num_rows - start)).combine_chunks()
            self._open_part(group).write_table(group, row_group_size=ROW_GROUP_ROWS)
            self._rows_in_part += group.num_rows
            if self._rows_in_part >= PART_ROWS:
                self._close_part()
        # A copy, or the slice would keep the written rows in memory.
        rest = waiting.slice(num_rows)
        self._waiting = [rest.take(np.arange(rest.num_rows))] if rest.num_rows else []
        self._num_waiting = rest.num_rows

    def _open_part(self, table: pa.Table) -> pq.ParquetWriter:
        if self._writer is None:
            path = self._open_folder() / "interactions" / f"part-{self._num_parts:05d}.parquet"
            self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
            self._columns["interactions"] = _types(table)
            self._num_parts += 1
        return self._writer

    def _close_part(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._rows_in_part = 0

    def _open_folder(self) -> Path:
        assert self._temporary is not None, "DatasetWriter is used inside its with block"
        return self._temporary

    def _move_into_place(self, fresh: Path) -> None:
        if not self._folder.exists():
            os.rename(fresh, self._folder)
            return
        retired = fresh.with_name(f"{fresh.name}-old")
        os.rename(self._folder, retired)
        os.rename(fresh, self._folder)
        shutil.rmtree(retired)


def _types(table: pa.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def _version() -> str:
    try:
        return version("farewell")
    except PackageNotFoundError:
        return "from a source tree"
