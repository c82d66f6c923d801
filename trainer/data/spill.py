"""A table that is too large for memory, cut into parts on disk and read back part by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class Spill:
    """Parts of a table in a folder, one file each; rows of a part keep their order.

    Args:
        folder: where the files go; made here. It is the caller's to remove.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table, part: NDArray[np.integer]) -> None:
        """Put each row into its part.

        Args:
            table: R rows; the columns are those of the first table.
            part: (R,) numbers of parts.
        """
        if table.num_rows == 0:
            return
        order = np.argsort(part, kind="stable")
        table = table.take(order)
        parts, starts = np.unique(part[order], return_index=True)
        stops = np.append(starts[1:], table.num_rows)
        for number, start, stop in zip(parts.tolist(), starts, stops, strict=True):
            if number not in self._writers:
                self._writers[number] = pa.ipc.new_stream(str(self._path(number)), table.schema)
            self._writers[number].write_table(table.slice(start, stop - start))

    def parts(self) -> Iterator[pa.Table]:
        """Each part whole, in order of their numbers; a part's file is gone after it was read."""
        for reader in self._read():
            yield reader.read_all()

    def chunks(self) -> Iterator[pa.Table]:
        """The same in the pieces that were added, for parts that are too large for memory."""
        for reader in self._read():
            for batch in reader:
                yield pa.Table.from_batches([batch])

    def _read(self) -> Iterator[pa.RecordBatchStreamReader]:
        for writer in self._writers.values():
            writer.close()
        for number in sorted(self._writers):
            with (
                pa.OSFile(str(self._path(number)), "rb") as file,
                pa.ipc.open_stream(file) as reader,
            ):
                yield reader
            self._path(number).unlink()
        self._writers = {}

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:05d}.arrow"
