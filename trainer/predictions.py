"""Scores of one model on one split, kept with the rows that they belong to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.schema import RowRange
from trainer.metrics import Floats, Ints

ROW = "row"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Probabilities per task of rows of the log, in any order.

    Args:
        rows: int64 (N,) positions in the log.
        scores: task -> (N,) probabilities.
    """

    rows: Ints
    scores: Mapping[str, Floats]

    def __post_init__(self) -> None:
        """Check that every task has one score a row.

        Raises:
            ValueError: when lengths differ, or a task is called like the row column.
        """
        for task, scores in self.scores.items():
            if len(scores) != len(self.rows):
                raise ValueError(
                    f"predictions: {len(self.rows)} rows but {len(scores)} scores of {task!r}"
                )
        if ROW in self.scores:
            raise ValueError(f"predictions: a task may not be named {ROW!r}")

    def save(self, path: Path) -> None:
        """Write one parquet file: `row` and a float64 column a task. Replaces atomically."""
        table = pa.table({ROW: self.rows, **self.scores})
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            pq.write_table(table, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            ValueError: when the file is missing, is not parquet, or has no int64 column `row`
                and float64 columns of scores without nulls.
        """
        try:
            table = pq.read_table(path)
        except (FileNotFoundError, pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: expected a parquet file of predictions ({error})") from error
        if ROW not in table.column_names:
            found = ", ".join(table.column_names)
            raise ValueError(f"{path}: expected a column {ROW!r}, found {found}")
        for name, column in zip(table.column_names, table.columns, strict=True):
            expected = pa.int64() if name == ROW else pa.float64()
            if column.type != expected or column.null_count:
                raise ValueError(
                    f"{path}: column {name!r}: expected {expected} without nulls, "
                    f"found {column.type} with {column.null_count} nulls"
                )
        columns = {name: table[name].to_numpy() for name in table.column_names}
        return cls(rows=columns.pop(ROW), scores=columns)

    def aligned(self, rows: RowRange) -> dict[str, Floats]:
        """Scores in the order of `rows`, each row exactly once.

        Raises:
            ValueError: when a row is missing, repeated or outside the range.
        """
        outside = self.rows[(self.rows < rows.start) | (self.rows >= rows.stop)]
        if len(outside):
            raise ValueError(
                f"predictions: row {outside[0]} lies outside rows {rows.start} to {rows.stop}; "
                "they were made for another split or data set"
            )
        times = np.bincount(self.rows - rows.start, minlength=len(rows))
        if len(self.rows) != len(rows) or (times != 1).any():
            missing, repeated = int((times == 0).sum()), int((times > 1).sum())
            raise ValueError(
                f"predictions: of rows {rows.start} to {rows.stop}, {missing} are missing and "
                f"{repeated} stand more than once; evaluate the whole split again"
            )
        order = np.argsort(self.rows)
        return {
            task: np.asarray(scores, dtype=np.float64)[order]
            for task, scores in self.scores.items()
        }
