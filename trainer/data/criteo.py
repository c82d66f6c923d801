"""Criteo's display advertising log (Kaggle, 2014) as a data set folder: 45 million impressions.

`train.txt` has no header, 40 columns between tabs: the label, 13 counts I1 to I13 and 26 ids C1 to
C26, any of which may be missing. It is read twice, a block at a time.

The file names no user, no item and no time, which decides the rest: rows stand in order of time
(seven days), so a row's number is its timestamp and the split by time is a split of the file; one
user holds all rows, so GAUC equals AUC; histories are empty; and the field that tokens would stand
for is C10 (93 thousand values), which counts as the item.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainer.data.csv_chunks import CsvFile
from trainer.data.ragged import Ragged
from trainer.data.schema import Categorical, DatasetSchema, Dense, ItemSequence
from trainer.data.text_ids import TextIds, hex_ids
from trainer.data.text_numbers import real_numbers, zeros_and_ones
from trainer.data.writer import DatasetWriter, Manifest, Progress, ragged_column

COUNTS = tuple(f"I{at}" for at in range(1, 14))
IDS = tuple(f"C{at}" for at in range(1, 27))
COLUMNS = ("label", *COUNTS, *IDS)
ITEM = "C10"
NUM_ITEMS = 93_145
"""Values of C10 in the whole file."""
CARDINALITIES = {
    **{"C1": 1_500, "C2": 600, "C5": 320, "C6": 32, "C7": 12_800, "C8": 650, "C9": 8},
    **{"C11": 5_800, "C13": 3_300, "C14": 32, "C15": 15_360, "C17": 16, "C18": 5_800},
    **{"C19": 2_240, "C20": 8, "C22": 24, "C23": 20, "C25": 112},
}
"""Ids of each field, somewhat more than the values it has in the whole file."""
HASHED = dict.fromkeys(("C3", "C4", "C12", "C16", "C21", "C24", "C26"), 1 << 20)
"""Buckets of the fields with a hundred thousand values or more."""
MISSING_COUNT = -10.0
"""Stands for a missing count; those that are there begin at -3."""

SCHEMA_CRITEO = DatasetSchema(
    name="criteo",
    features=(
        *(
            Categorical(
                name=name,
                entity="request",
                cardinality=HASHED.get(name, CARDINALITIES.get(name, 0)),
                hashed=name in HASHED,
            )
            for name in IDS
            if name != ITEM
        ),
        *(Dense(name=name, entity="request") for name in COUNTS),
    ),
    labels=("click",),
    histories=(ItemSequence(name="history", max_length=1),),
)


def write_criteo(
    source: Path, folder: Path, *, max_rows: int | None = None, progress: Progress | None = None
) -> Manifest:
    """Write Criteo's `train.txt` (also compressed) as a data set folder.

    Ids of a field count its values by frequency, a missing one among them; those that no longer
    fit share 0.

    Args:
        source: the file.
        folder: target folder.
        max_rows: the first rows of the file alone; None for all.
        progress: told about rows written.

    Raises:
        ValueError: when lines have another number of columns, or a value is not what its column
            holds.
    """
    file = CsvFile(
        path=source,
        columns=COLUMNS,
        delimiter="\t",
        header=False,
        what="Criteo's train.txt",
        max_rows=max_rows,
    )
    fields = {name: TextIds(size) for name, size in CARDINALITIES.items()}
    items = TextIds()
    first_row: dict[str, int] = {}
    num_rows = 0
    for chunk in file.chunks():
        for name, ids in fields.items():
            ids.count(chunk[name])
        items.count(chunk[ITEM])
        values, first = np.unique(chunk[ITEM].to_numpy().astype(str), return_index=True)
        for value, row in zip(values.tolist(), first.tolist(), strict=True):
            first_row.setdefault(value, num_rows + row)
        num_rows += chunk.num_rows
    for ids in (*fields.values(), items):
        ids.finish()
    done = 0
    recorded = {"file": source.name, "rows": "all" if max_rows is None else f"first {max_rows:,}"}
    with DatasetWriter(folder, schema=SCHEMA_CRITEO, source=recorded) as out:
        out.write_items(items.table(first_row))
        for chunk in file.chunks():
            out.write(_impressions(chunk, fields, items, done))
            done += chunk.num_rows
            if progress is not None:
                progress(done, num_rows)
        return out.finish()


def _impressions(
    chunk: pa.Table, fields: dict[str, TextIds], items: TextIds, first_row: int
) -> pa.Table:
    rows = chunk.num_rows
    nothing = Ragged(np.zeros(0, np.int64), np.zeros(rows + 1, np.int64))
    columns: dict[str, Any] = {
        "user_id": np.zeros(rows, np.int32),
        "session_id": np.zeros(rows, np.int32),
        "item_id": items.encode(chunk[ITEM]),
        "timestamp": np.arange(first_row, first_row + rows),
        "history": ragged_column(nothing),
        **{name: ids.encode(chunk[name]) for name, ids in fields.items()},
        **{name: hex_ids(chunk[name], name=name) for name in HASHED},
        **{
            name: real_numbers(chunk[name], place=f"column {name!r}", absent=MISSING_COUNT).astype(
                np.float32
            )
            for name in COUNTS
        },
        "click": zeros_and_ones(chunk["label"], place="column 'label'"),
    }
    return pa.table(columns)
