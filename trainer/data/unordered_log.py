"""From a published file in no order of time to a data set folder, whatever its size."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.csv_chunks import CsvFile
from trainer.data.last_click import PART, in_order_of_parts
from trainer.data.time_order import in_time_order, parts_of_file
from trainer.data.writer import DatasetWriter, Progress

logger = logging.getLogger(__name__)

PartsBy = Literal["last_click", "time"]
"""Order of the log: training, validation and test by last clicks, or time alone."""


class UnorderedLog(ABC):
    """A log on its way to impressions; a published one derives from this and fills in the steps.

    Args:
        file: of the impressions.
        num_items: items are known by their place in `[0, num_items)`.

    Attributes:
        file: of the impressions.
        num_read: rows of the file read so far.
        num_rows: of these, impressions that are kept.
        first_time: int64 (num_items,) seconds of the first impression; -1 for none.
    """

    def __init__(self, file: CsvFile, num_items: int) -> None:
        self.file = file
        self.num_read = 0
        self.num_rows = 0
        self.first_time = np.full(num_items, -1)

    @abstractmethod
    def events(self) -> Iterator[pa.Table]:
        """All events, in any order: see `in_time_order`. Counts `num_read` and `num_rows`."""

    @abstractmethod
    def of_users(self, rows: pa.Table) -> pa.Table:
        """Impressions of some users, with their `part` and what follows from their own events."""

    @abstractmethod
    def impressions(self, rows: pa.Table) -> pa.Table:
        """Rows of interactions, from impressions in order of time."""

    def saw(self, items: NDArray[np.int64], times: NDArray[np.int64]) -> None:
        """Remember first impressions; called in order of time."""
        found, first = np.unique(items, return_index=True)
        fresh = self.first_time[found] < 0
        self.first_time[found[fresh]] = times[first[fresh]]

    def write(
        self,
        out: DatasetWriter,
        *,
        parts_by: PartsBy,
        beside: Path,
        published_rows: int,
        progress: Progress | None,
    ) -> None:
        """Write all impressions.

        Args:
            out: where to.
            parts_by: order of the log.
            beside: folder on whose disk rows wait.
            published_rows: of the whole file; fewer are told, since a download may break off.
            progress: told about rows written.
        """
        ordered = in_time_order(
            self.events(), self.of_users, num_parts=parts_of_file(self.file.path), beside=beside
        )
        chunks: Iterator[pa.Table] = (self.impressions(chunk) for chunk in ordered)
        if parts_by == "last_click":
            chunks = in_order_of_parts(chunks, beside=beside)
        else:
            chunks = (chunk.drop_columns([PART]) for chunk in chunks)
        done = 0
        for chunk in chunks:
            out.write(chunk)
            done += chunk.num_rows
            if progress is not None:
                progress(done, self.num_rows)
        if self.file.max_rows is None and self.num_read < published_rows:
            logger.warning(
                "%s: %s rows, published are %s; was the download cut off?",
                self.file.path,
                f"{self.num_read:,}",
                f"{published_rows:,}",
            )

    def recorded(self, parts_by: PartsBy) -> dict[str, str]:
        """What the manifest says of the source."""
        most = self.file.max_rows
        return {
            "file": self.file.path.name,
            "rows": "all" if most is None else f"first {most:,}",
            "parts": parts_by,
        }
