"""How often each item was shown: the weights of mem-tokens by exposure instead of by item."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def exposed_rows(path: Path, share: float) -> int:
    """Rows of a log that `count_exposures` looks at."""
    return int(_open(path).count_rows() * share)


def count_exposures(
    path: Path, item_ids: NDArray[np.int64], *, share: float = 1.0, column: str = "item_id"
) -> NDArray[np.int64]:
    """Count the rows of each item in a log, block by block.

    Args:
        path: parquet file, or folder of parts in the order of their names, one row an impression.
        item_ids: int64 `(N,)`, each once.
        share: of the rows, from the first on, that are counted; below 1 where the rest is kept
            for evaluation.
        column: of item ids.

    Returns:
        int64 `(N,)`; 0 for items that were not shown.

    Raises:
        ValueError: no such file or column, ids that are no integers, nulls, or none of the items.
    """
    if not 0 < share <= 1:
        raise ValueError(f"exposure share: expected above 0 and at most 1, found {share}")
    log = _open(path)
    if column not in log.schema.names or not pa.types.is_integer(log.schema.field(column).type):
        raise ValueError(
            f"{path}: expected an integer column {column!r}, found {', '.join(log.schema.names)}"
        )
    left = int(log.count_rows() * share)
    order = np.argsort(item_ids, kind="stable")
    ordered = item_ids[order]
    counts = np.zeros(len(item_ids), dtype=np.int64)
    unknown = 0
    for batch in log.to_batches(columns=[column], batch_size=1 << 20):
        ids = batch.column(0)[:left]
        left -= len(ids)
        if ids.null_count:
            raise ValueError(f"{path}, column {column}: expected no nulls, found {ids.null_count}")
        values = ids.to_numpy().astype(np.int64)
        place = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
        known = ordered[place] == values
        unknown += int((~known).sum())
        counts += np.bincount(order[place[known]], minlength=len(counts))
        if left == 0:
            break
    if not counts.any():
        raise ValueError(
            f"{path}, column {column}: none of the {len(item_ids)} items occurs; is this the log "
            f"of the same catalogue?"
        )
    if unknown:
        logger.warning("%s: %d impressions are of items without embedding", path, unknown)
    return counts


def _open(path: Path) -> ds.Dataset:
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder of a log")
    parts = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not parts:
        raise ValueError(f"{path}: expected parquet files, found none")
    return ds.dataset([str(part) for part in parts], format="parquet")
