"""KuaiRec (Gao et al., 2022) as a data set folder: views of short videos, big or small matrix.

`big_matrix.csv` has 12.5 million views of 7,176 users, `small_matrix.csv` nearly all pairs of 1,411
users and 3,327 videos. DIG's protocol (its section 4.1): a view is positive when the watch ratio is
at least 0.7; every view is a sample for ranking; each user's last positive view is the test, the
one before validation (`trainer.data.last_click`); statistics are of what was before.

The paper's cross features are "per-user watch_ratio and like_rate". A pair of user and video is
seen once, so a history of the pair itself would be empty; here they are of the user and the
video's categories: the mean watch ratio and the smoothed share of positive views so far. The files
know no likes of a user; those of all users of the platform, by video and day, are a feature of the
item.

The files stand in order of users, and a few views of the small matrix have no time: they are left
out. Days and hours are Beijing's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.causal import NUM_GAP_BUCKETS, CausalConfig, CausalFeatures
from trainer.data.clock import BEIJING, clock_columns
from trainer.data.csv_chunks import CsvFile
from trainer.data.id_index import IdIndex
from trainer.data.kuairec_files import (
    ITEM_IDS,
    NUM_CATEGORIES,
    NUM_LENGTHS,
    USER_IDS,
    USER_NUMBERS,
    Videos,
    read_users,
)
from trainer.data.last_click import PART, last_click_parts, of_last_clicks
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, ItemSequence
from trainer.data.sums_before import sums_before
from trainer.data.text_numbers import real_numbers, whole_numbers
from trainer.data.time_order import ROW
from trainer.data.unordered_log import PartsBy, UnorderedLog
from trainer.data.writer import DatasetWriter, Manifest, Progress

Matrix = Literal["big", "small"]
COLUMNS = ("user_id", "video_id", "timestamp", "watch_ratio")
PUBLISHED_ROWS: dict[Matrix, int] = {"big": 12_530_806, "small": 4_676_570}
NUM_USERS = 7_176
NUM_VIDEOS: dict[Matrix, int] = {"big": 10_728, "small": 3_327}
POSITIVE = 0.7
"""Watch ratio from which a view is positive."""
MOST_WATCHED = 5.0
"""Watch ratios above count as this in means: some are in the hundreds."""
MAX_HISTORY = 50
KEPT = (
    *("session_id", "gap_bucket", "history", "history_rest"),
    *("user_count", "user_mean", "item_count", "item_mean"),
)
"""Causal features that the log has under their own names."""


def _schema(matrix: Matrix) -> DatasetSchema:
    return DatasetSchema(
        name=f"kuairec_{matrix}",
        features=(
            Categorical(name="user_id", entity="user", cardinality=NUM_USERS),
            *(
                Categorical(name=name, entity="user", cardinality=size, source="users")
                for name, size in USER_IDS.items()
            ),
            Bag(name="categories", entity="item", cardinality=NUM_CATEGORIES, source="items"),
            *(
                Categorical(name=name, entity="item", cardinality=size, source="items")
                for name, size in (*ITEM_IDS.items(), ("duration_level", NUM_LENGTHS))
            ),
            Categorical(name="hour", entity="request", cardinality=24),
            Categorical(name="weekday", entity="request", cardinality=7),
            Categorical(name="gap_bucket", entity="request", cardinality=NUM_GAP_BUCKETS),
            *(
                Dense(name=name, entity="user", source="users", transform="log1p")
                for name in USER_NUMBERS
            ),
            Dense(name="user_count", entity="user", transform="log1p"),
            Dense(name="user_mean", entity="user"),
            Dense(name="user_watch_ratio", entity="user"),
            Dense(name="item_count", entity="item", transform="log1p"),
            Dense(name="item_mean", entity="item"),
            Dense(name="item_like_rate", entity="item"),
            Dense(name="user_category_count", entity="cross", transform="log1p"),
            Dense(name="user_category_mean", entity="cross"),
            Dense(name="user_category_watch_ratio", entity="cross"),
        ),
        labels=("watched",),
        histories=(
            ItemSequence(name="history", max_length=MAX_HISTORY),
            ItemSequence(name="history_rest", max_length=MAX_HISTORY),
        ),
    )


SCHEMAS_KUAIREC: dict[Matrix, DatasetSchema] = {"big": _schema("big"), "small": _schema("small")}
"""Of logs that are cut by time; `of_last_clicks` gives those of the other kind."""


def write_kuairec(
    source: Path,
    folder: Path,
    *,
    matrix: Matrix = "big",
    parts_by: PartsBy = "last_click",
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write KuaiRec's files (version 2.0) as a data set folder.

    Args:
        source: folder with the files, `data` of the published archive.
        folder: target folder.
        matrix: which of the two.
        parts_by: order of the log: DIG's parts by last clicks, or time alone.
        max_rows: the first rows of the matrix alone, which are those of the first users.
        progress: told about rows written.

    Raises:
        ValueError: naming the file that is missing, or the column that is, or what it holds.
    """
    schema = SCHEMAS_KUAIREC[matrix]
    if parts_by == "last_click":
        schema = of_last_clicks(schema)
    log = _Matrix(source, matrix, max_rows)
    with DatasetWriter(folder, schema=schema, source=log.recorded(parts_by)) as out:
        out.write_users(log.users)
        log.write(
            out,
            parts_by=parts_by,
            beside=folder.parent,
            published_rows=PUBLISHED_ROWS[matrix],
            progress=progress,
        )
        out.write_items(log.videos.table(log.first_time))
        left_out = log.num_read - log.num_rows
        return out.finish({"rows_without_time": float(left_out)} if left_out else None)


class _Matrix(UnorderedLog):
    """A matrix on its way to impressions."""

    def __init__(self, source: Path, matrix: Matrix, max_rows: int | None) -> None:
        self.videos = Videos.read(source)
        file = CsvFile(
            path=source / f"{matrix}_matrix.csv",
            columns=COLUMNS,
            delimiter=",",
            header=True,
            what=f"KuaiRec's {matrix}_matrix.csv",
            max_rows=max_rows,
            wanted=True,
        )
        super().__init__(file, len(self.videos.ids))
        self.users = read_users(source)
        self._user_index = IdIndex(self.users["user_id"].to_numpy())
        self._causal = CausalFeatures(
            num_users=self.users.num_rows,
            item_genres=self.videos.categories,
            num_genres=NUM_CATEGORIES,
            config=CausalConfig(max_history=MAX_HISTORY),
        )

    def events(self) -> Iterator[pa.Table]:
        """The file's rows that have a time, as it has them."""
        for chunk in self.file.chunks():
            times = real_numbers(
                chunk["timestamp"], place=self.file.place("timestamp"), absent=-1.0
            )
            timed = times >= 0
            self.num_read += chunk.num_rows
            chunk, times = chunk.filter(pa.array(timed)), times[timed].astype(np.int64)
            users = whole_numbers(chunk["user_id"], place=self.file.place("user_id"))
            self._places(users, self._user_index, "user_id", "user_features.csv")
            ids = whole_numbers(chunk["video_id"], place=self.file.place("video_id"))
            ratios = real_numbers(chunk["watch_ratio"], place=self.file.place("watch_ratio"))
            if len(ratios) and ratios.min() < 0:
                raise ValueError(
                    f"{self.file.place('watch_ratio')}: expected 0 or more, found {ratios.min()}"
                )
            self.num_rows += len(times)
            columns: dict[str, Any] = {
                "user_id": users,
                "timestamp": times,
                "video": self._places(ids, self.videos.index, "video_id", "item_categories.csv"),
                "watch_ratio": ratios,
            }
            yield pa.table(columns)

    def _places(
        self, ids: NDArray[np.int64], index: IdIndex, column: str, other: str
    ) -> NDArray[np.int32]:
        places = index.rows(ids)
        if (places < 0).any():
            raise ValueError(
                f"{self.file.place(column)}: expected ids of {other}, found {ids[places < 0][0]}; "
                "are the files of one version?"
            )
        return places

    def of_users(self, rows: pa.Table) -> pa.Table:
        """Add watch ratios so far, of the user and of the user and the video's categories."""
        users, times = rows["user_id"].to_numpy(), rows["timestamp"].to_numpy()
        ratios = rows["watch_ratio"].to_numpy()
        seen = np.stack([np.ones(len(ratios)), np.minimum(ratios, MOST_WATCHED)], axis=1)
        tags, lengths = self.videos.categories.take(rows["video"].to_numpy())
        row_of_tag = np.repeat(np.arange(len(users)), lengths)
        by_tag = sums_before(
            users[row_of_tag] * NUM_CATEGORIES + tags, times[row_of_tag], seen[row_of_tag]
        )
        of_categories = np.zeros((len(users), 2))
        for column in range(2):
            of_categories[:, column] = np.bincount(
                row_of_tag, weights=by_tag[:, column], minlength=len(users)
            )
        columns: dict[str, Any] = {
            "user_watch_ratio": _mean(sums_before(users, times, seen)),
            "user_category_watch_ratio": _mean(of_categories),
            PART: last_click_parts(users, times, rows[ROW].to_numpy(), ratios >= POSITIVE),
        }
        for name, values in columns.items():
            rows = rows.append_column(name, pa.array(values))
        return rows

    def impressions(self, rows: pa.Table) -> pa.Table:
        """Rows of interactions, from views in order of time."""
        users, times = rows["user_id"].to_numpy(), rows["timestamp"].to_numpy()
        video, ratios = rows["video"].to_numpy().astype(np.int64), rows["watch_ratio"].to_numpy()
        positive = ratios >= POSITIVE
        past = self._causal.transform(
            users=self._user_index.rows(users).astype(np.int64),
            items=video,
            timestamps=times,
            positives=positive,
        )
        self.saw(video, times)
        past_columns = past.table_columns(self.videos.ids)
        columns: dict[str, Any] = {
            "user_id": users,
            "item_id": self.videos.ids[video],
            "timestamp": times,
            **clock_columns(times, ahead=BEIJING),
            **{name: past_columns[name] for name in KEPT},
            "user_watch_ratio": rows["user_watch_ratio"],
            "item_like_rate": self.videos.like_rates(video, times),
            "user_category_count": past.user_genre_count,
            "user_category_mean": past.user_genre_mean,
            "user_category_watch_ratio": rows["user_category_watch_ratio"],
            "watch_ratio": ratios.astype(np.float32),
            PART: rows[PART].cast(pa.int8()),
            "watched": positive.astype(np.int8),
        }
        return pa.table(columns)


def _mean(sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """Second column over the first; 0 without any."""
    return (sums[:, 1] / np.maximum(sums[:, 0], 1)).astype(np.float32)
