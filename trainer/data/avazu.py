"""Avazu's click log (Kaggle, 2014) as a data set folder: 40 million impressions of ten days.

The file `train.gz` comes from the competition's page, whose rules allow no copy; it is read twice,
a block at a time, first to count values and then to write. The item is the site that shows the ad:
STORE cuts site ids into (K, V) = (3, 16) tokens, and so do we. With the 22 features below that
makes the 23 fields of its protocol; its log of nine million rows with 3,437 sites is a part of
this one that it does not name (`max_rows` takes the first rows).

Beside the fields there is what SASRec and history modules need: whom an impression was shown to
(the device, or address and model where the device is unknown) and the sites it clicked on and did
not, in the hours before. The file gives hours, so rows of one hour see the same past.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.causal import CausalConfig, CausalFeatures
from trainer.data.clock import clock_columns
from trainer.data.csv_chunks import CsvFile
from trainer.data.ragged import Ragged
from trainer.data.schema import Categorical, DatasetSchema, ItemSequence
from trainer.data.text_ids import TextIds, hex_ids
from trainer.data.text_numbers import zeros_and_ones
from trainer.data.writer import DatasetWriter, Manifest, Progress

COLUMNS = (
    *("id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category", "device_id", "device_ip", "device_model"),
    *("device_type", "device_conn_type", "C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21"),
)
CARDINALITIES = {
    **{"C1": 8, "banner_pos": 8, "site_domain": 8_192, "site_category": 32, "app_id": 9_216},
    **{"app_domain": 640, "app_category": 48, "device_model": 8_704, "device_type": 8},
    **{"device_conn_type": 8, "C14": 2_816, "C15": 16, "C16": 16, "C17": 512, "C18": 8},
    **{"C19": 80, "C20": 192, "C21": 72},
}
"""Ids of each field, somewhat more than the values it has in the whole file."""
HASHED = {"device_id": 1 << 18, "device_ip": 1 << 20}
"""Buckets of the fields with millions of values."""
NUM_SITES = 4_737
"""Sites in the whole file."""
NO_DEVICE = 0xA99F214A
"""The device id of four fifths of the rows: of every device that tells none."""
MAX_HISTORY = 10
SESSION_GAP = 3_600

SCHEMA_AVAZU = DatasetSchema(
    name="avazu",
    features=(
        *(
            Categorical(name=name, entity="request", cardinality=size)
            for name, size in CARDINALITIES.items()
        ),
        *(
            Categorical(name=name, entity="user", cardinality=size, hashed=True)
            for name, size in HASHED.items()
        ),
        Categorical(name="hour", entity="request", cardinality=24),
        Categorical(name="weekday", entity="request", cardinality=7),
    ),
    labels=("click",),
    histories=(
        ItemSequence(name="history", max_length=MAX_HISTORY),
        ItemSequence(name="history_rest", max_length=MAX_HISTORY),
    ),
)


def write_avazu(
    source: Path, folder: Path, *, max_rows: int | None = None, progress: Progress | None = None
) -> Manifest:
    """Write Avazu's `train.gz` (or an unpacked `train`) as a data set folder.

    Ids of a field count its values by frequency, those that no longer fit share 0. Memory grows
    with the number of devices (about 130 bytes each), not of rows.

    Args:
        source: the file.
        folder: target folder.
        max_rows: the first rows of the file alone; None for all.
        progress: told about rows written.

    Raises:
        ValueError: when the columns are not Avazu's, or a value is not what its column holds.
    """
    file = CsvFile(
        path=source,
        columns=COLUMNS,
        delimiter=",",
        header=True,
        what="Avazu's train.gz",
        max_rows=max_rows,
    )
    known = _Known()
    for chunk in file.chunks():
        known.count(chunk)
    users = known.finish()
    num_sites = len(known.sites.values)
    causal = CausalFeatures(
        num_users=len(users),
        item_genres=Ragged(np.zeros(0, np.int64), np.zeros(num_sites + 1, np.int64)),
        num_genres=1,
        config=CausalConfig(max_history=MAX_HISTORY, session_gap=SESSION_GAP),
    )
    done = 0
    recorded = {"file": source.name, "rows": "all" if max_rows is None else f"first {max_rows:,}"}
    with DatasetWriter(folder, schema=SCHEMA_AVAZU, source=recorded) as out:
        out.write_items(known.item_table())
        for chunk in file.chunks():
            out.write(_impressions(chunk, known, users, causal))
            done += chunk.num_rows
            if progress is not None:
                progress(done, known.num_rows)
        return out.finish()


@dataclass
class _Known:
    """What the first pass learns: values of the fields, sites with their first hour, users."""

    fields: dict[str, TextIds] = field(
        default_factory=lambda: {name: TextIds(size) for name, size in CARDINALITIES.items()}
    )
    sites: TextIds = field(default_factory=TextIds)
    first_hour: dict[str, int] = field(default_factory=dict)
    num_rows: int = 0
    _users: list[NDArray[np.int64]] = field(default_factory=list)

    def count(self, chunk: pa.Table) -> None:
        """Take a chunk in."""
        for name, ids in self.fields.items():
            ids.count(chunk[name])
        self.sites.count(chunk["site_id"])
        sites = chunk["site_id"].to_numpy().astype(str)
        values, first = np.unique(sites, return_index=True)
        hours = seconds(chunk["hour"])[first]
        for site, hour in zip(values.tolist(), hours.tolist(), strict=True):
            self.first_hour.setdefault(site, hour)
        self._users.append(np.unique(user_keys(chunk)))
        if len(self._users) == 64:
            self._users = [np.unique(np.concatenate(self._users))]
        self.num_rows += chunk.num_rows

    def finish(self) -> NDArray[np.int64]:
        """Give ids to all values; returns the users' keys, sorted."""
        for ids in (*self.fields.values(), self.sites):
            ids.finish()
        keys = self._users or [np.zeros(0, np.int64)]
        self._users = []
        return np.unique(np.concatenate(keys))

    def item_table(self) -> pa.Table:
        """One row a site."""
        return self.sites.table(self.first_hour)


def _impressions(
    chunk: pa.Table, known: _Known, users: NDArray[np.int64], causal: CausalFeatures
) -> pa.Table:
    clicks = zeros_and_ones(chunk["click"], place="column 'click'")
    times = seconds(chunk["hour"])
    user = np.searchsorted(users, user_keys(chunk))
    site = known.sites.encode(chunk["site_id"])
    past = causal.transform(
        users=user, items=site.astype(np.int64), timestamps=times, positives=clicks == 1
    )
    columns: dict[str, Any] = {
        "user_id": user,
        "item_id": site,
        "timestamp": times,
        **clock_columns(times),
        **{name: ids.encode(chunk[name]) for name, ids in known.fields.items()},
        **{name: hex_ids(chunk[name], name=name) for name in HASHED},
        "click": clicks,
    }
    past_columns = past.table_columns()
    kept = ("session_id", "history", "history_rest")
    return pa.table(columns | {name: past_columns[name] for name in kept})


def user_keys(chunk: pa.Table) -> NDArray[np.int64]:
    """The device, or address and model where there is none, as one number each."""
    device = hex_ids(chunk["device_id"], name="device_id")
    address = hex_ids(chunk["device_ip"], name="device_ip")
    model = hex_ids(chunk["device_model"], name="device_model")
    pair = (address.astype(np.uint64) << np.uint64(32) | model.astype(np.uint64)).view(np.int64)
    # Below zero, so that no device is an address: both kinds have 32 bits.
    return np.where(device == NO_DEVICE, pair, -1 - device)


def seconds(hours: Any) -> NDArray[np.int64]:
    """Times `YYMMDDHH` as seconds since 1970, int64.

    Raises:
        ValueError: naming the first value of another form.
    """
    texts, place = np.unique(hours.to_numpy().astype(str), return_inverse=True)
    return np.array([_second(text) for text in texts.tolist()], np.int64)[place]


def _second(hour: str) -> int:
    try:
        return int(datetime.strptime(f"{hour}+0000", "%y%m%d%H%z").timestamp())
    except ValueError as error:
        raise ValueError(f"column 'hour': expected YYMMDDHH, found {hour!r}") from error
