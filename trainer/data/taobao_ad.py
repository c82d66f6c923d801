"""Taobao's display ads (Ali_Display_Ad_Click, Tianchi) as a data set folder: 26.6 million rows.

`raw_sample.csv` has the impressions of 1.14 million users and eight days of May 2017, in no order
of time; `behavior_log.csv` what the same users did in the shop in 22 days (723 million rows, of
which purchases alone are used). DIG's protocol (its section 4.1): a click is positive; each user's
last click is the test, the one before validation (`trainer.data.last_click`); cross features are,
for the ad's category and its brand, how often the user saw ads of it, the share that he clicked,
and how often he bought of it, all before the impression: six numbers.

Ads and users keep their ids. Days and hours are Beijing's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.causal import NUM_GAP_BUCKETS, CausalConfig, CausalFeatures
from trainer.data.clock import BEIJING, clock_columns
from trainer.data.id_index import IdIndex
from trainer.data.last_click import PART, last_click_parts, of_last_clicks
from trainer.data.ragged import Ragged
from trainer.data.schema import Categorical, DatasetSchema, Dense, ItemSequence
from trainer.data.sums_before import sums_before
from trainer.data.taobao_ad_files import (
    NO_BRAND,
    NUM_PRICES,
    PROFILE_IDS,
    Ads,
    read_profiles,
    taobao_file,
)
from trainer.data.text_numbers import whole_numbers, zeros_and_ones
from trainer.data.time_order import ROW
from trainer.data.unordered_log import PartsBy, UnorderedLog
from trainer.data.writer import DatasetWriter, Manifest, Progress

NUM_ADS = 846_811
PUBLISHED_ROWS = 26_557_961
PLACES = ("430548_1007", "430539_1007")
"""Where on the pages ads stand (`pid`)."""
BEHAVIOURS = ("pv", "cart", "fav", "buy")
NO_AD = -1
"""Stands in a purchase's row for the ad: purchases and impressions go the same way for a while."""
MAX_HISTORY = 20
GROUPS = ("category", "brand")
KEPT = (
    *("session_id", "gap_bucket", "history", "history_rest"),
    *("user_count", "user_mean", "item_count", "item_mean"),
)
"""Causal features that the log has."""

SCHEMA_TAOBAO_AD = DatasetSchema(
    name="taobao_ad",
    features=(
        Categorical(name="user_id", entity="user", cardinality=1 << 20, hashed=True),
        *(
            Categorical(name=name, entity="user", cardinality=size, source="users")
            for name, size in PROFILE_IDS.items()
        ),
        *(
            Categorical(name=name, entity="item", cardinality=size, source="items", hashed=True)
            for name, size in (("cate_id", 1 << 14), ("brand", 1 << 17), ("customer", 1 << 18))
        ),
        Categorical(name="price_level", entity="item", cardinality=NUM_PRICES, source="items"),
        Categorical(name="place", entity="request", cardinality=len(PLACES)),
        Categorical(name="hour", entity="request", cardinality=24),
        Categorical(name="weekday", entity="request", cardinality=7),
        Categorical(name="gap_bucket", entity="request", cardinality=NUM_GAP_BUCKETS),
        Dense(name="user_count", entity="user", transform="log1p"),
        Dense(name="user_mean", entity="user"),
        Dense(name="item_count", entity="item", transform="log1p"),
        Dense(name="item_mean", entity="item"),
        *(
            feature
            for group in GROUPS
            for feature in (
                Dense(name=f"user_{group}_impressions", entity="cross", transform="log1p"),
                Dense(name=f"user_{group}_ctr", entity="cross"),
                Dense(name=f"user_{group}_purchases", entity="cross", transform="log1p"),
            )
        ),
    ),
    labels=("click",),
    histories=(
        ItemSequence(name="history", max_length=MAX_HISTORY),
        ItemSequence(name="history_rest", max_length=MAX_HISTORY),
    ),
)
"""Of a log that is cut by time; `of_last_clicks` gives that of the other kind.

`campaign_id` is a column of items.parquet and no feature: there is one for every two ads, so it
says which ad it is rather than what it is like.
"""


def write_taobao_ad(
    source: Path,
    folder: Path,
    *,
    parts_by: PartsBy = "last_click",
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the four files as a data set folder.

    Memory grows with users and ads alone; rows wait on the disk of `folder`.

    Args:
        source: folder with raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv.
        folder: target folder.
        parts_by: order of the log: DIG's parts by last clicks, or time alone.
        max_rows: the first rows of raw_sample.csv alone.
        progress: told about rows written.

    Raises:
        ValueError: naming the file that is missing, or the column that is, or what it holds.
    """
    schema = SCHEMA_TAOBAO_AD
    if parts_by == "last_click":
        schema = of_last_clicks(schema)
    log = _AdLog(source, max_rows)
    with DatasetWriter(folder, schema=schema, source=log.recorded(parts_by)) as out:
        log.write(
            out,
            parts_by=parts_by,
            beside=folder.parent,
            published_rows=PUBLISHED_ROWS,
            progress=progress,
        )
        out.write_items(log.ads.table(log.first_time))
        out.write_users(read_profiles(source, log.users))
        return out.finish()


class _AdLog(UnorderedLog):
    """The log on its way to impressions."""

    def __init__(self, source: Path, max_rows: int | None) -> None:
        self.ads = Ads.read(source)
        file = taobao_file(
            source,
            "raw_sample.csv",
            ("user", "time_stamp", "adgroup_id", "pid", "clk"),
            max_rows=max_rows,
        )
        super().__init__(file, len(self.ads.price))
        self._behaviour = taobao_file(
            source, "behavior_log.csv", ("user", "time_stamp", "btag", "cate", "brand")
        )
        # A file that is missing or wrong is told before hours go by.
        read_profiles(source, np.zeros(0, np.int64))
        self.users = np.zeros(0, np.int64)
        self._user_index = IdIndex(self.users)
        self._causal: CausalFeatures | None = None

    def events(self) -> Iterator[pa.Table]:
        """All impressions as the file has them, then the purchases of their users."""
        found: list[NDArray[np.int64]] = []
        for chunk in self.file.chunks():
            users = whole_numbers(chunk["user"], place=self.file.place("user"))
            ids = whole_numbers(chunk["adgroup_id"], place=self.file.place("adgroup_id"))
            ads = self.ads.index.rows(ids).astype(np.int64)
            if (ads < 0).any():
                raise ValueError(
                    f"{self.file.place('adgroup_id')}: expected ads of ad_feature.csv, found "
                    f"{ids[ads < 0][0]}; is ad_feature.csv whole?"
                )
            self.num_read += chunk.num_rows
            self.num_rows += chunk.num_rows
            found.append(np.unique(users))
            if len(found) == 64:
                found = [np.unique(np.concatenate(found))]
            yield _events(
                users,
                whole_numbers(chunk["time_stamp"], place=self.file.place("time_stamp")),
                cate=self.ads.fields["cate_id"][ads],
                brand=self.ads.fields["brand"][ads],
                ad=ads,
                place=_place_on_page(chunk["pid"], self.file.place("pid")),
                click=zeros_and_ones(chunk["clk"], place=self.file.place("clk")),
            )
        self.users = np.unique(np.concatenate(found)) if found else self.users
        self._user_index = IdIndex(self.users)
        yield from self._purchases()

    def _purchases(self) -> Iterator[pa.Table]:
        file = self._behaviour
        for chunk in file.chunks():
            known = pc.is_in(chunk["btag"], value_set=pa.array(BEHAVIOURS))
            if not pc.all(known).as_py():
                wrong = chunk["btag"].filter(pc.invert(known))[0].as_py()
                raise ValueError(
                    f"{file.place('btag')}: expected {', '.join(BEHAVIOURS)}, found {wrong!r}"
                )
            bought = chunk.filter(pc.equal(chunk["btag"], pa.scalar("buy")))
            users = whole_numbers(bought["user"], place=file.place("user"))
            of_log = self._user_index.rows(users) >= 0
            bought, users = bought.filter(pa.array(of_log)), users[of_log]
            nothing = np.zeros(len(users), np.int8)
            yield _events(
                users,
                whole_numbers(bought["time_stamp"], place=file.place("time_stamp")),
                cate=whole_numbers(bought["cate"], place=file.place("cate")),
                brand=whole_numbers(bought["brand"], place=file.place("brand"), absent=NO_BRAND),
                ad=np.full(len(users), NO_AD),
                place=nothing,
                click=nothing,
            )

    def of_users(self, rows: pa.Table) -> pa.Table:
        """Impressions alone, with the counts of the user and the ad's category and brand."""
        users, times = rows["user_id"].to_numpy(), rows["timestamp"].to_numpy()
        clicks = rows["click"].to_numpy()
        shown = rows["ad"].to_numpy() != NO_AD
        counted = np.stack([shown, clicks, ~shown], axis=1).astype(np.float64)
        columns: dict[str, Any] = {}
        for group, name in zip(GROUPS, ("cate", "brand"), strict=True):
            value = rows[name].to_numpy()
            # Ids have less than 31 bits; what has none stands alone and is told nothing.
            sums = sums_before(users << 32 | (value + 1), times, counted)
            sums[value == NO_BRAND] = 0
            columns |= {
                f"user_{group}_impressions": sums[:, 0],
                f"user_{group}_ctr": sums[:, 1] / np.maximum(sums[:, 0], 1),
                f"user_{group}_purchases": sums[:, 2],
            }
        impressions = rows.filter(pa.array(shown)).drop_columns(["cate", "brand"])
        for name, values in columns.items():
            impressions = impressions.append_column(
                name, pa.array(values[shown].astype(np.float32))
            )
        parts = last_click_parts(
            users[shown], times[shown], rows[ROW].to_numpy()[shown], clicks[shown] > 0
        )
        return impressions.append_column(PART, pa.array(parts.astype(np.int8)))

    def impressions(self, rows: pa.Table) -> pa.Table:
        """Rows of interactions, from impressions in order of time."""
        times, ads = rows["timestamp"].to_numpy(), rows["ad"].to_numpy()
        past = self._past().transform(
            users=self._user_index.rows(rows["user_id"].to_numpy()).astype(np.int64),
            items=ads,
            timestamps=times,
            positives=rows["click"].to_numpy() > 0,
        )
        self.saw(ads, times)
        ids = self.ads.fields["adgroup_id"]
        past_columns = past.table_columns(ids)
        columns: dict[str, Any] = {
            "user_id": rows["user_id"],
            "item_id": ids[ads],
            "timestamp": times,
            **clock_columns(times, ahead=BEIJING),
            **{name: past_columns[name] for name in KEPT},
            **{name: rows[name] for name in ("place", *_cross_features(), PART, "click")},
        }
        return pa.table(columns)

    def _past(self) -> CausalFeatures:
        """Made when all users are known."""
        if self._causal is None:
            num_ads = len(self.ads.price)
            self._causal = CausalFeatures(
                num_users=len(self.users),
                item_genres=Ragged(np.zeros(0, np.int64), np.zeros(num_ads + 1, np.int64)),
                num_genres=1,
                config=CausalConfig(max_history=MAX_HISTORY),
            )
        return self._causal


def _cross_features() -> tuple[str, ...]:
    return tuple(f.name for f in SCHEMA_TAOBAO_AD.dense_features if f.entity == "cross")


def _events(
    users: NDArray[np.int64],
    times: NDArray[np.int64],
    *,
    cate: NDArray[np.int64],
    brand: NDArray[np.int64],
    ad: NDArray[np.int64],
    place: NDArray[np.int8],
    click: NDArray[np.int8],
) -> pa.Table:
    columns: dict[str, Any] = {"user_id": users, "timestamp": times, "cate": cate, "brand": brand}
    return pa.table(columns | {"ad": ad, "place": place, "click": click})


def _place_on_page(column: Any, place: str) -> NDArray[np.int8]:
    found: Any = pc.index_in(column, value_set=pa.array(PLACES))
    if found.null_count:
        wrong = column.filter(pc.is_null(found))[0].as_py()
        raise ValueError(f"{place}: expected {' or '.join(PLACES)}, found {wrong!r}")
    places: NDArray[np.int8] = found.to_numpy().astype(np.int8)
    return places
