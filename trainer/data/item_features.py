"""What an item is to a model: its own id, or its semantic tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenization.artifact import TokenArtifact
from tokenization.vocabulary import gen_row
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError, Place
from trainer.data.hashing import hash_buckets
from trainer.data.id_index import IdIndex
from trainer.data.ragged import Ragged
from trainer.data.schema import RowRange

__all__ = [
    "ItemFeatures",
    "Ragged",
    "item_id_features",
    "most_exposed_items",
    "raw_item_ids",
    "token_features",
    "token_rows",
]

_COUNTED_ROWS = 1_000_000


@dataclass(frozen=True)
class ItemFeatures:
    """Identity ids of every item, which the reader puts into `Batch.items`.

    Attributes:
        features: key (`item_id`, or `gen_token` and `mem_token`) -> one list of table rows an
            item, in the order of items.parquet.
    """

    features: dict[str, Ragged]


def item_id_features(dataset: Dataset, *, cardinality: int, hashed: bool) -> ItemFeatures:
    """Give each item its id, under the key `item_id`.

    Args:
        dataset: whose items.parquet is followed.
        cardinality: rows of the item table.
        hashed: hash ids of any size into `cardinality` rows.

    Raises:
        DataError: when an id that is not hashed is out of `[0, cardinality)`.
    """
    ids = dataset.item_ids
    if hashed:
        values = hash_buckets(ids, cardinality)
    else:
        outside = (ids < 0) | (ids >= cardinality)
        if outside.any():
            at = int(np.argmax(outside))
            raise Place(dataset.items.part.path, dataset.schema.item).error(
                expected=f"ids in [0, {cardinality}), the rows of the item table",
                found=str(ids[at]),
                row=at,
                mend="give the table more rows, or hash the ids",
            )
        values = ids
    return ItemFeatures({"item_id": Ragged(values, np.arange(len(ids) + 1))})


def raw_item_ids(dataset: Dataset) -> Ragged:
    """Each item's id as it stands, whatever its size: what a managed table takes."""
    return Ragged(dataset.item_ids, np.arange(dataset.num_items + 1))


def most_exposed_items(dataset: Dataset, *, rows: RowRange, num_rows: int) -> Ragged:
    """Rows of a small ID table: one for each of the items with the most impressions.

    An item that keeps a row has a list of that row, the others have empty lists. Items without an
    impression never keep one, since it would never be trained; ties go to the item that stands
    first in items.parquet.

    Args:
        dataset: whose items.parquet is followed.
        rows: of the log, in which impressions are counted: the training part.
        num_rows: rows of the ID table.
    """
    counts = np.zeros(dataset.num_items, dtype=np.int64)
    for start in range(rows.start, rows.stop, _COUNTED_ROWS):
        part = RowRange(start, min(start + _COUNTED_ROWS, rows.stop))
        ids = dataset.read(part, [dataset.schema.item])[dataset.schema.item]
        counts += np.bincount(dataset.item_rows(ids), minlength=dataset.num_items)
    by_exposure = np.argsort(-counts, kind="stable")[:num_rows]
    keeps_row = np.zeros(dataset.num_items, dtype=bool)
    keeps_row[by_exposure] = counts[by_exposure] > 0
    return Ragged.from_lengths(
        np.arange(int(keeps_row.sum()), dtype=np.int64), keeps_row.astype(np.int64)
    )


def token_features(dataset: Dataset, artifact: TokenArtifact, *, mem_rows: int) -> ItemFeatures:
    """Give each item its tokens, under the keys `gen_token` and `mem_token` (TRM section 3.2).

    Gen-token (level, code) is row `level * num_codes + code` of its table. Mem-tokens keep their
    ids while the table has a row for each, and are hashed into `mem_rows` buckets otherwise.

    Args:
        dataset: whose items.parquet is followed.
        artifact: tokens of at least these items, in any order.
        mem_rows: rows of the mem-token table.

    Raises:
        DataError: when an item has no tokens.
    """
    rows = IdIndex(artifact.item_ids).rows(dataset.item_ids)
    missing = rows < 0
    if missing.any():
        first = dataset.item_ids[np.argmax(missing)]
        raise DataError(
            f"token artifact: expected tokens for every item of {dataset.items.part.path}, found "
            f"{int(missing.sum())} of {len(rows)} items without, the first {first}; run "
            "`farewell tokenize` again on this data set"
        )
    return ItemFeatures(
        {
            feature: tokens.gather(rows)
            for feature, tokens in token_rows(artifact, mem_rows=mem_rows).items()
        }
    )


def token_rows(artifact: TokenArtifact, *, mem_rows: int) -> dict[str, Ragged]:
    """Rows of the artifact's items in the tables `gen_token` and `mem_token`, in its order.

    Args:
        artifact: N items.
        mem_rows: rows of the mem-token table.
    """
    gen_rows = gen_row(artifact.codes, artifact.num_codes)
    num_items, num_levels = gen_rows.shape
    gen = Ragged(gen_rows.reshape(-1), np.arange(num_items + 1) * num_levels)
    mem = Ragged(artifact.mem_values, artifact.mem_offsets)
    if artifact.num_merges > mem_rows:
        mem = Ragged(hash_buckets(mem.values, mem_rows), mem.offsets)
    return {"gen_token": gen, "mem_token": mem}
