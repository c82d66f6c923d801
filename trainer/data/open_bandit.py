"""Open Bandit, small version: 60,000 impressions of a fashion shop with affinities of its own.

The wheel `obp` carries 10,000 impressions of each campaign (all, men, women) and behaviour policy
(random, and Thompson sampling as `bts`), seven days in November 2019. Only its csv files are read.

It names no user: `user_id` counts the combinations of the four user features, of which there are
337. A row has the affinity of its user to every item of the campaign (past clicks on it): that of
the item shown is the cross feature, and the items with any are the history, those with most
affinity last. The campaigns number their items each from 0, so an item here is campaign and number.
Policy and propensity are columns and no features.

With 287 clicks in all it can show that native cross features go the whole way through schema,
model and retrieval, and how a policy's share is calibrated; AUCs on it are noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainer.data.clock import clock_columns
from trainer.data.csv_chunks import CsvFile
from trainer.data.pypi_source import PinnedWheel, wheel_members
from trainer.data.ragged import Ragged
from trainer.data.schema import Categorical, DatasetSchema, Dense, ItemSequence
from trainer.data.text_ids import TextIds
from trainer.data.text_numbers import real_numbers, whole_numbers, zeros_and_ones
from trainer.data.writer import DatasetWriter, Manifest, Progress, ragged_column

Campaign = Literal["all", "men", "women"]
Policy = Literal["random", "bts"]
CAMPAIGNS: dict[Campaign, int] = {"all": 80, "men": 34, "women": 46}
"""Items of each campaign."""
POLICIES: tuple[Policy, ...] = ("random", "bts")
WHEEL = PinnedWheel(
    name="obp",
    version="0.4.1",
    sha256="87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
    members="obp/dataset/obd",
)
MAX_HISTORY = 10
NUM_POSITIONS = 3
NUM_USERS = 337
_USER = tuple(f"user_feature_{number}" for number in range(4))
_ITEM = tuple(f"item_feature_{number}" for number in range(1, 4))
USER_CARDINALITIES = dict(zip(_USER, (4, 6, 10, 11), strict=True))
"""Values of all files, and 0 for one that is new."""
ITEM_CARDINALITIES = dict(zip(_ITEM, (32, 64, 32), strict=True))

SCHEMA_OPEN_BANDIT = DatasetSchema(
    name="open_bandit",
    features=(
        Categorical(name="user_id", entity="user", cardinality=NUM_USERS),
        *(
            Categorical(name=name, entity="user", cardinality=size)
            for name, size in USER_CARDINALITIES.items()
        ),
        *(
            Categorical(name=name, entity="item", cardinality=size, source="items")
            for name, size in ITEM_CARDINALITIES.items()
        ),
        Categorical(name="campaign", entity="request", cardinality=len(CAMPAIGNS)),
        Categorical(name="position", entity="request", cardinality=NUM_POSITIONS),
        Categorical(name="hour", entity="request", cardinality=24),
        Categorical(name="weekday", entity="request", cardinality=7),
        Dense(name="user_affinity", entity="user", transform="log1p"),
        Dense(name="item_feature_0", entity="item", source="items"),
        Dense(name="user_item_affinity", entity="cross", transform="log1p"),
    ),
    labels=("click",),
    histories=(ItemSequence(name="history", max_length=MAX_HISTORY),),
    query_group="campaign",
)


def write_open_bandit(
    folder: Path,
    *,
    campaigns: Sequence[Campaign] = tuple(CAMPAIGNS),
    policies: Sequence[Policy] = POLICIES,
    progress: Progress | None = None,
) -> Manifest:
    """Fetch the small Open Bandit log and write it as a data set folder.

    Args:
        folder: target folder.
        campaigns: those whose impressions and items are taken.
        policies: those whose impressions are taken.
        progress: told about rows written.

    Raises:
        SourceError: when the wheel cannot be fetched.
        ValueError: when no campaign or policy is named, or a file is not as published.
    """
    if not campaigns or not policies:
        raise ValueError(
            f"open_bandit: campaigns is {list(campaigns)} and policies {list(policies)}; name at "
            "least one of each"
        )
    source = wheel_members(WHEEL)
    logs = []
    for campaign in dict.fromkeys(campaigns):
        for policy in dict.fromkeys(policies):
            logs.append(_read_log(source / policy / campaign / f"{campaign}.csv", campaign, policy))
    log = pa.concat_tables(logs)
    log = log.take(np.argsort(log["timestamp"].to_numpy(), kind="stable"))
    log = _with_users(log)
    recorded = {
        "package": f"{WHEEL.name}=={WHEEL.version}",
        "sha256": WHEEL.sha256,
        "campaigns": ", ".join(campaigns),
        "policies": ", ".join(policies),
    }
    with DatasetWriter(folder, schema=SCHEMA_OPEN_BANDIT, source=recorded) as out:
        first_time = int(log["timestamp"][0].as_py())
        out.write_items(_items(source, tuple(dict.fromkeys(campaigns)), first_time))
        out.write(log)
        if progress is not None:
            progress(log.num_rows, log.num_rows)
        return out.finish()


def _first_item(campaign: Campaign) -> int:
    names = list(CAMPAIGNS)
    return sum(CAMPAIGNS[name] for name in names[: names.index(campaign)])


def _read_log(path: Path, campaign: Campaign, policy: Policy) -> pa.Table:
    num_items = CAMPAIGNS[campaign]
    affinities = tuple(f"user-item_affinity_{number}" for number in range(num_items))
    plain = ("timestamp", "item_id", "position", "click", "propensity_score", *_USER)
    file = _file(path, (*plain, *affinities))
    text = pa.concat_tables(list(file.chunks()))
    times = _seconds(text["timestamp"], file.place("timestamp"))
    items = _within(whole_numbers(text["item_id"], place=file.place("item_id")), num_items, file)
    affinity = np.stack(
        [real_numbers(text[name], place=file.place(name)) for name in affinities], axis=1
    )
    first = _first_item(campaign)
    columns: dict[str, Any] = {
        "item_id": items + first,
        "timestamp": times,
        **clock_columns(times),
        "campaign": np.full(len(times), list(CAMPAIGNS).index(campaign), np.int32),
        "policy": np.full(len(times), POLICIES.index(policy), np.int8),
        "position": whole_numbers(text["position"], place=file.place("position")) - 1,
        "propensity": real_numbers(
            text["propensity_score"], place=file.place("propensity_score")
        ).astype(np.float32),
        **{name: text[name] for name in _USER},
        "user_affinity": affinity.sum(axis=1).astype(np.float32),
        "user_item_affinity": affinity[np.arange(len(items)), items].astype(np.float32),
        "history": ragged_column(_history(affinity, first)),
        "click": zeros_and_ones(text["click"], place=file.place("click")),
    }
    return pa.table(columns)


def _file(path: Path, columns: tuple[str, ...]) -> CsvFile:
    return CsvFile(
        path=path,
        columns=columns,
        delimiter=",",
        header=True,
        what=f"Open Bandit's {path.name}",
        wanted=True,
    )


def _within(numbers: NDArray[np.int64], size: int, file: CsvFile) -> NDArray[np.int64]:
    wrong = (numbers < 0) | (numbers >= size)
    if wrong.any():
        raise ValueError(
            f"{file.place('item_id')}: expected 0 to {size - 1}, found {numbers[wrong][0]}"
        )
    return numbers


def _seconds(column: Any, place: str) -> NDArray[np.int64]:
    """Times like `2019-11-24 00:00:17.004101+00:00`, to the second."""
    text: Any = pc.utf8_slice_codeunits(column, 0, 19)
    try:
        seconds: NDArray[np.int64] = text.cast(pa.timestamp("s")).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{place}: expected times, but: {error}") from error
    return seconds


def _history(affinity: NDArray[np.float64], first_item: int) -> Ragged:
    """Items that the user clicked before, those with most affinity last."""
    order = np.argsort(affinity, axis=1, kind="stable")[:, -MAX_HISTORY:]
    row, place = np.nonzero(np.take_along_axis(affinity, order, axis=1) > 0)
    lengths = np.bincount(row, minlength=len(affinity)).astype(np.int64)
    return Ragged.from_lengths(order[row, place] + first_item, lengths)


def _with_users(log: pa.Table) -> pa.Table:
    """Ids in place of the user features' texts, and one id for each combination."""
    texts: list[Any] = [log[name] for name in _USER]
    combination: Any = pc.binary_join_element_wise(*texts, " ")
    for name, size in USER_CARDINALITIES.items():
        log = _encoded(log, name, size)
    return log.append_column("user_id", pa.array(TextIds().count_and_encode(combination)))


def _items(source: Path, campaigns: tuple[Campaign, ...], first_time: int) -> pa.Table:
    """Items of the campaigns; ids of the features are by frequency over all of them."""
    tables = []
    for campaign in campaigns:
        # Both policies show the same items; their files name the same values by other codes.
        file = _file(
            source / POLICIES[0] / campaign / "item_context.csv",
            ("item_id", "item_feature_0", *_ITEM),
        )
        text = pa.concat_tables(list(file.chunks()))
        numbers = whole_numbers(text["item_id"], place=file.place("item_id"))
        columns: dict[str, Any] = {
            "item_id": _within(numbers, CAMPAIGNS[campaign], file) + _first_item(campaign),
            "created_at": np.full(len(numbers), first_time),
            "item_feature_0": real_numbers(
                text["item_feature_0"], place=file.place("item_feature_0")
            ).astype(np.float32),
            **{name: text[name] for name in _ITEM},
        }
        tables.append(pa.table(columns))
    items = pa.concat_tables(tables)
    for name, size in ITEM_CARDINALITIES.items():
        items = _encoded(items, name, size)
    return items


def _encoded(table: pa.Table, name: str, size: int) -> pa.Table:
    """The table with ids in place of a column's texts."""
    ids = TextIds(size).count_and_encode(table[name])
    return table.set_column(table.schema.get_field_index(name), name, pa.array(ids))
