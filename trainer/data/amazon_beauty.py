"""Amazon Beauty's five-core as a data set folder: what users reviewed, in order, without times.

It is the log that TIGER, LETTER and their successors publish Recall@K on: 198,502 reviews of 12,101
products by 22,363 users, of each user's reviews the last for the test, the last but one for
validation. Two files: `sequences.txt`, a line a user (user id, then item ids, oldest first), and
`items.json` (item id -> title and category paths).

There are no times, so a row's past is what stands before it in its user's sequence, and nothing of
other users: no counts of items, and no ages. There is no label 0 either. By default the log has
positives alone, which is what retrieval is fitted on; `negatives` draws items at random beside each
review, for losses that need both labels. These were never shown to anyone, and the manifest says
so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.amazon_beauty_files import (
    DEPTHS,
    NUM_CATEGORIES,
    NUM_USERS,
    BeautyItems,
    BeautyReviews,
)
from trainer.data.last_click import PART
from trainer.data.ragged import Ragged
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, ItemSequence
from trainer.data.writer import DatasetWriter, Manifest, Progress, ragged_column

Ints = NDArray[np.int64]

MAX_HISTORY = 50
CHUNK_ROWS = 65_536

SCHEMA_BEAUTY = DatasetSchema(
    name="amazon_beauty",
    features=(
        Categorical(name="user_id", entity="user", cardinality=NUM_USERS),
        Bag(name="categories", entity="item", cardinality=NUM_CATEGORIES, source="items"),
        Dense(name="user_count", entity="user", transform="log1p"),
        *(
            Dense(name=f"same_category_{depth}", entity="cross", transform="log1p")
            for depth in DEPTHS
        ),
    ),
    labels=("review",),
    histories=(ItemSequence(name="history", max_length=MAX_HISTORY),),
    time=PART,
    created_at=None,
)
"""Cut by `trainer.data.last_click.SPLIT_AT_LAST_CLICKS`."""


def write_amazon_beauty(
    source: Path,
    folder: Path,
    *,
    negatives: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Manifest:
    """Write Amazon Beauty as a data set folder.

    A row's features: items that its user reviewed before (`history`), how many (`user_count`), and
    how many of these share the first two, three, four levels of the item's category path. Rows
    stand in the order training, validation, test, by their position in the sequences within each.

    Args:
        source: folder with `items.json` and `sequences.txt`.
        folder: target folder.
        negatives: items drawn beside each review, label 0: uniformly from the catalogue without
            what the user has reviewed so far. What he will review may be drawn, since leaving it
            out would tell.
        seed: of the draws.
        progress: told about rows written.

    Raises:
        ValueError: when a file is missing or not of this form, `negatives` is negative, or a seed
            is given without them.
    """
    if negatives < 0:
        raise ValueError(f"negatives is {negatives}, expected at least 0")
    if seed and not negatives:
        raise ValueError(
            f"seed is {seed}, but nothing is drawn; ask for negatives, or leave it out"
        )
    items = BeautyItems.read(source / "items.json")
    log = BeautyReviews.read(source / "sequences.txt", items.ids)
    drawn = _draw(log, len(items.ids), negatives, seed)
    recorded = {
        "files": "items.json, sequences.txt",
        "label 0": f"{negatives} items drawn at random beside each review, seed {seed}; "
        "nobody was shown them"
        if negatives
        else "none: the log has positives alone",
    }
    counted = _SameCategory(log, items)
    order = np.lexsort((log.user, log.position, log.part))
    part = max(1, CHUNK_ROWS // (1 + negatives))
    num_rows = len(order) * (1 + negatives)
    with DatasetWriter(folder, schema=SCHEMA_BEAUTY, source=recorded) as out:
        out.write_items(items.table())
        out.write_users(pa.table({"user_id": np.unique(log.user)}))
        for start in range(0, len(order), part):
            events = order[start : start + part]
            out.write(_impressions(log, items, counted, events, drawn[events]))
            if progress is not None:
                progress(min(start + part, len(order)) * (1 + negatives), num_rows)
        return out.finish()


class _SameCategory:
    """How many of a user's earlier items share a prefix of a category path with an item."""

    def __init__(self, log: BeautyReviews, items: BeautyItems) -> None:
        self._prefix = items.prefix
        self._num_categories = items.num_categories
        self._longest = int(log.position.max()) + 1
        self._keys = [
            np.sort(self._key(log.user, self._prefix[log.item, depth], log.position))
            for depth in range(len(DEPTHS))
        ]

    def _key(self, user: Ints, prefix: Ints, position: Ints) -> Ints:
        return (user * self._num_categories + prefix) * self._longest + position

    def count(self, user: Ints, item: Ints, position: Ints) -> list[Ints]:
        """For each depth, reviews of the user before `position` that share the prefix."""
        counts = []
        for depth, keys in enumerate(self._keys):
            prefix = self._prefix[item, depth]
            first = np.searchsorted(keys, self._key(user, prefix, np.zeros_like(position)))
            counts.append(np.searchsorted(keys, self._key(user, prefix, position)) - first)
        return counts


def _draw(log: BeautyReviews, num_items: int, negatives: int, seed: int) -> Ints:
    """Item rows int64 (R, negatives), none of which the user has reviewed so far."""
    if negatives and log.position.max() + 1 >= num_items:
        raise ValueError(
            f"negatives: expected users who leave items out, found one with "
            f"{log.position.max() + 1} reviews of {num_items} items; draw none"
        )
    rng = np.random.default_rng(seed)
    order = np.lexsort((log.position, log.user * num_items + log.item))
    known, reviewed_at = (log.user * num_items + log.item)[order], log.position[order]
    drawn = rng.integers(num_items, size=(len(log.user), negatives))
    again = np.ones(drawn.shape, dtype=np.bool_)
    while again.any():
        row, place = np.nonzero(again)
        key = log.user[row] * num_items + drawn[row, place]
        at = np.searchsorted(known, key).clip(max=len(known) - 1)
        again[row, place] = (known[at] == key) & (reviewed_at[at] <= log.position[row])
        drawn[again] = rng.integers(num_items, size=int(again.sum()))
    return drawn


def _impressions(
    log: BeautyReviews, items: BeautyItems, counted: _SameCategory, events: Ints, drawn: Ints
) -> pa.Table:
    """Rows of some reviews, each with what was drawn beside it."""
    copies = 1 + drawn.shape[1]
    event = np.repeat(events, copies)
    item = np.concatenate([log.item[events, None], drawn], axis=1).reshape(-1)
    user, position = log.user[event], log.position[event]
    lengths = np.minimum(position, MAX_HISTORY)
    ends = np.cumsum(lengths)
    past = np.repeat(event - ends, lengths) + np.arange(int(lengths.sum()))
    same = counted.count(user, item, position)
    columns: dict[str, Any] = {
        "user_id": user,
        "item_id": items.ids[item],
        PART: log.part[event],
        "position": position,
        "session_id": event,
        "user_count": position,
        **{f"same_category_{depth}": one for depth, one in zip(DEPTHS, same, strict=True)},
        "history": ragged_column(Ragged.from_lengths(items.ids[log.item[past]], lengths)),
        "review": np.tile(np.arange(copies) == 0, len(events)).astype(np.int8),
    }
    return pa.table(columns)
