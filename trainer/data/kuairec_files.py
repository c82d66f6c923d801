"""What KuaiRec's small files tell of videos and users.

Videos: `item_categories.csv` (tags), `item_daily_features.csv` (author, music, length, day of
upload; plays and likes of each day, of all users of the platform) and captions (see
`trainer.data.kuairec_captions`). Users: `user_features.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.clock import BEIJING, DAY
from trainer.data.csv_chunks import CsvFile
from trainer.data.id_index import IdIndex, refuse_repeated
from trainer.data.kuairec_captions import CAPTION_FILE, CATEGORY_IDS, read_captions
from trainer.data.log_levels import log_levels
from trainer.data.ragged import Ragged
from trainer.data.sums_before import sums_before
from trainer.data.text_ids import TextIds
from trainer.data.text_numbers import real_numbers, whole_numbers
from trainer.data.writer import ragged_column

NUM_CATEGORIES = 31
NUM_LENGTHS = 32
ITEM_IDS = {"author_id": 12_288, "music_id": 12_288, **CATEGORY_IDS}
"""Ids of each field of a video, more than the values it can have or has."""
USER_IDS = {
    "user_active_degree": 8,
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), 6),
    **dict.fromkeys(("follow_user_num_range", "fans_user_num_range", "friend_user_num_range"), 16),
    "register_days_range": 16,
    **{
        f"onehot_feat{number}": size
        for number, size in enumerate(
            (8, 16, 64, 1_536, 32, 64, 8, 128, 512, 16, 16, 16, 8, 8, 8, 8, 8, 8)
        )
    },
}
"""Ids of each field of a user, more than the values it has."""
USER_NUMBERS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")

_DAILY_COLUMNS = (
    *("video_id", "date", "author_id", "upload_dt", "video_duration", "music_id"),
    *("play_cnt", "like_cnt"),
)


@dataclass(frozen=True)
class Videos:
    """The catalogue of V videos, in order of their ids.

    Attributes:
        ids: int64 (V,) as in the files.
        index: of these.
        categories: V lists of tags.
        first_day: day (since 1970, in Beijing) of the first column of `like_rate`.
        like_rate: float32 (V, days + 1), likes over plays of the days before each.
        uploaded: int64 (V,) seconds; -1 where the files don't tell.
        fields: columns of items.parquet with ids, and the texts.
    """

    ids: NDArray[np.int64]
    index: IdIndex
    categories: Ragged
    first_day: int
    like_rate: NDArray[np.float32]
    uploaded: NDArray[np.int64]
    fields: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Videos:
        """Read the three files.

        Raises:
            ValueError: naming file and column, when one is missing or holds another kind of value.
        """
        ids, categories = _categories(_file(folder, "item_categories.csv", ("video_id", "feat")))
        daily = _file(folder, "item_daily_features.csv", _DAILY_COLUMNS)
        days = pa.concat_tables(list(daily.chunks()))
        index = IdIndex(ids)
        listed = whole_numbers(days["video_id"], place=daily.place("video_id"))
        video = index.rows(listed).astype(np.int64)
        known = video >= 0
        days, video = days.filter(pa.array(known)), video[known]
        day = _days(days["date"], daily.place("date"))
        order = np.lexsort((day, video))
        seen, first = np.unique(video[order], return_index=True)
        # What stays of a video is taken from its first day; videos without a day have none.
        row_of = np.full(len(ids), -1)
        row_of[seen] = order[first]

        def of_first_day(name: str) -> Any:
            rows = days[name].take(pa.array(row_of, mask=row_of < 0))
            return pc.fill_null(rows, pa.scalar(""))

        length = real_numbers(
            of_first_day("video_duration"), place=daily.place("video_duration"), absent=-1.0
        )
        fields = {
            "duration_level": log_levels(np.where(length < 0, -1, length / 1_000), NUM_LENGTHS),
            **read_captions(folder / CAPTION_FILE, ids),
        }
        for name in ("author_id", "music_id"):
            fields[name] = TextIds(ITEM_IDS[name]).count_and_encode(of_first_day(name))
        upload = of_first_day("upload_dt")
        uploaded = _days(upload, daily.place("upload_dt"), absent=True) * DAY - BEIJING
        first_day, like_rate = _like_rates(days, daily, video, day, len(ids))
        return cls(
            ids=ids,
            index=index,
            categories=categories,
            first_day=first_day,
            like_rate=like_rate,
            uploaded=np.where(pc.equal(upload, pa.scalar("")).to_numpy(), -1, uploaded),
            fields=fields,
        )

    def like_rates(
        self, videos: NDArray[np.int64], timestamps: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Likes over plays of the platform, of the days before each impression."""
        day = (timestamps + BEIJING) // DAY - self.first_day
        return self.like_rate[videos, np.clip(day, 0, self.like_rate.shape[1] - 1)]

    def table(self, first_view: NDArray[np.int64]) -> pa.Table:
        """An items.parquet of the videos that were seen.

        Args:
            first_view: int64 (V,) seconds; -1 for a video that was not.
        """
        seen = np.flatnonzero(first_view >= 0)
        upload = self.uploaded[seen]
        born = np.where(upload < 0, first_view[seen], np.minimum(upload, first_view[seen]))
        columns: dict[str, Any] = {
            "item_id": self.ids[seen],
            "created_at": born,
            "categories": ragged_column(self.categories.gather(seen)),
            **{name: pa.array(column).take(pa.array(seen)) for name, column in self.fields.items()},
        }
        return pa.table(columns)


def read_users(folder: Path) -> pa.Table:
    """A users.parquet of all users, in order of their ids.

    Raises:
        ValueError: naming file and column, when one is missing or holds another kind of value.
    """
    file = _file(folder, "user_features.csv", ("user_id", *USER_IDS, *USER_NUMBERS))
    text = pa.concat_tables(list(file.chunks()))
    place = file.place("user_id")
    ids = whole_numbers(text["user_id"], place=place)
    refuse_repeated(ids, place)
    columns: dict[str, Any] = {
        "user_id": ids,
        **{name: TextIds(size).count_and_encode(text[name]) for name, size in USER_IDS.items()},
    }
    for name in USER_NUMBERS:
        numbers = real_numbers(text[name], place=file.place(name), absent=0.0)
        columns[name] = np.maximum(numbers, 0).astype(np.float32)
    return pa.table(columns).take(np.argsort(ids, kind="stable"))


def _file(folder: Path, name: str, columns: tuple[str, ...]) -> CsvFile:
    return CsvFile(
        path=folder / name,
        columns=columns,
        delimiter=",",
        header=True,
        what=f"KuaiRec's {name}",
        wanted=True,
        quoted=True,
    )


def _categories(file: CsvFile) -> tuple[NDArray[np.int64], Ragged]:
    """Ids of the videos, ascending, and the tags of each, from texts like `[27, 9]`."""
    text = pa.concat_tables(list(file.chunks()))
    place = file.place("video_id")
    ids = whole_numbers(text["video_id"], place=place)
    refuse_repeated(ids, place)
    feat: Any = text["feat"].combine_chunks()
    listed: Any = pc.match_substring_regex(feat, pattern=r"^\[[^\[\]]*\]$")
    if not pc.all(listed).as_py():
        wrong = feat.filter(pc.invert(listed))[0].as_py()
        raise ValueError(f"{file.place('feat')}: expected lists like [27, 9], found {wrong!r}")
    plain: Any = pc.replace_substring_regex(feat, pattern=r"[\[\]\s]", replacement="")
    lists = pc.split_pattern(plain, pattern=",")
    video = pc.list_parent_indices(lists).to_numpy()
    words = lists.flatten()
    named: NDArray[np.bool_] = pc.not_equal(words, pa.scalar("")).to_numpy(zero_copy_only=False)
    tags = whole_numbers(words.filter(pa.array(named)), place=file.place("feat"))
    if len(tags) and not 0 <= tags.min() <= tags.max() < NUM_CATEGORIES:
        raise ValueError(
            f"{file.place('feat')}: expected tags 0 to {NUM_CATEGORIES - 1}, found {tags.min()} to "
            f"{tags.max()}"
        )
    lengths = np.bincount(video[named], minlength=len(ids)).astype(np.int64)
    order = np.argsort(ids, kind="stable")
    return ids[order], Ragged.from_lengths(tags, lengths).gather(order)


def _days(column: Any, place: str, *, absent: bool = False) -> NDArray[np.int64]:
    """Days since 1970 of texts like `20200705` or `2020-07-05`; 0 where empty and `absent`."""
    plain: Any = pc.replace_substring_regex(
        column, pattern=r"^(\d{4})-?(\d\d)-?(\d\d)(\.0)?$", replacement=r"\1-\2-\3"
    )
    if absent:
        plain = pc.if_else(pc.equal(plain, pa.scalar("")), "1970-01-01", plain)
    try:
        days: NDArray[np.int64] = plain.cast(pa.date32()).cast(pa.int32()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{place}: expected dates, but: {error}") from error
    return days.astype(np.int64)


def _like_rates(
    days: pa.Table, file: CsvFile, video: NDArray[np.int64], day: NDArray[np.int64], num_videos: int
) -> tuple[int, NDArray[np.float32]]:
    """First day, and likes over plays before each day from it on (V, days + 1)."""
    if not len(day):
        raise ValueError(f"{file.path}: holds no day of any video of item_categories.csv")
    first, last = int(day.min()), int(day.max())
    counts = np.stack(
        [
            real_numbers(days[name], place=file.place(name), absent=0.0)
            for name in ("like_cnt", "play_cnt")
        ],
        axis=1,
    )
    # One row of nothing for each video and day asks what was before it.
    num_days = last - first + 2
    asked_video = np.repeat(np.arange(num_videos), num_days)
    asked_day = np.tile(np.arange(first, last + 2), num_videos)
    before = sums_before(
        np.concatenate([video, asked_video]),
        np.concatenate([day, asked_day]),
        np.concatenate([counts, np.zeros((len(asked_day), 2))]),
    )[len(day) :]
    rates = before[:, 0] / np.maximum(before[:, 1], 1)
    return first, rates.reshape(num_videos, num_days).astype(np.float32)
