"""From an item's id to the rows that stand for it, for items that were trained on and for others.

| what stands for an item | an id that training has not seen |
|---|---|
| its tokens | needs tokens in the artifact; a newer one of the same vocabulary can be given |
| a row of its own | takes its row, untrained, while the table has one; else it is refused |
| a hashed row | shares a row, as in training |
| a managed row | takes the row that ids without one share, as in training |
| a residual ID beside tokens | has none: it is its tokens |
| what a DIG model encodes it to | is refused: export again, which encodes it without training |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sharding.tables import TableSpec
from tokenization.artifact import TokenArtifact
from trainer.data.errors import Place
from trainer.data.hashing import hash_buckets
from trainer.data.id_index import IdIndex
from trainer.data.item_features import token_rows
from trainer.data.ragged import Ragged
from trainer.modules.hybrid_tokens import GEN_TOKEN, ITEM_ID, MEM_TOKEN
from trainer.modules.learned_tokens import ITEM_ROW, LearnedTokensConfig
from trainer.modules.managed_ids import HASH_SIZE
from trainer.modules.parallel_tokens import ItemConfig, TokenItemConfig
from trainer.serving.folder import ServingError

ENCODED_ITEMS = "encoded/item_ids"
"""Name in `identity.safetensors` of the items that a DIG model has encoded, in their order."""
Rows = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows of all items, one list after the other, and the length of each list."""


class RowsOfItems(Protocol):
    """Finds the rows of one table."""

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The rows of each item.

        Raises:
            DataError: naming an item that has none and needs some.
        """
        ...


class OwnRows:
    """An item's id is its row.

    Args:
        num_rows: of the table.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The ids themselves."""
        outside = (item_ids < 0) | (item_ids >= self._num_rows)
        if outside.any():
            raise place.error(
                expected=f"items with a row: ids in [0, {self._num_rows})",
                found=str(item_ids[np.argmax(outside)]),
                mend="train a model with more rows, or with hashed or managed ones, or with tokens",
            )
        return item_ids, np.ones_like(item_ids)


class HashedRows:
    """Items share rows by hash.

    Args:
        num_rows: of the table.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The bucket of each id."""
        return hash_buckets(item_ids, self._num_rows), np.ones_like(item_ids)


class ManagedRows:
    """The rows that ids had when the checkpoint was saved.

    A rank held the ids whose hashes lie in its part of `[0, HASH_SIZE)`; an id without a row took
    the last row of its rank's shard.

    Args:
        hashes: of the ids that have a row, ascending.
        rows: of these.
        shared: for each rank, the row that ids without one share.
        num_rows: of the table.

    Raises:
        ServingError: when they do not fit together.
    """

    def __init__(
        self,
        hashes: NDArray[np.int64],
        rows: NDArray[np.int64],
        shared: NDArray[np.int64],
        *,
        num_rows: int,
    ) -> None:
        every = np.concatenate([rows, shared])
        if (
            len(hashes) != len(rows)
            or not len(shared)
            or (np.diff(hashes) <= 0).any()
            or every.min() < 0
            or every.max() >= num_rows
        ):
            raise ServingError("identity.safetensors: the map of a managed table makes no sense")
        self._hashes, self._rows, self._shared = hashes, rows, shared
        self._part = -(-HASH_SIZE // len(shared))

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The row of each id, or the one that it shares."""
        hashes = hash_buckets(item_ids, HASH_SIZE)
        found = self._shared[hashes // self._part]
        if len(self._hashes):
            at = np.searchsorted(self._hashes, hashes)
            at[at == len(self._hashes)] = 0
            found = np.where(self._hashes[at] == hashes, self._rows[at], found)
        return found, np.ones_like(item_ids)


class KeptRows:
    """Some items have a row beside their tokens, the others none.

    Args:
        item_ids: that have one, in order of their rows.
        num_rows: of the table.
    """

    def __init__(self, item_ids: NDArray[np.int64], *, num_rows: int) -> None:
        if len(item_ids) > num_rows or len(np.unique(item_ids)) < len(item_ids):
            raise ServingError("identity.safetensors: the items that keep a row make no sense")
        self._index = IdIndex(item_ids)

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The row of each id that has one."""
        found = self._index.rows(item_ids).astype(np.int64)
        return found[found >= 0], (found >= 0).astype(np.int64)


class TokenRows:
    """An item is its gen- or its mem-tokens.

    Args:
        index: of the items of the token artifact.
        tokens: rows of each of these items.
    """

    def __init__(self, index: IdIndex, tokens: Ragged) -> None:
        self._index, self._tokens = index, tokens

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """The tokens' rows."""
        places = self._index.rows(item_ids)
        if len(places) and places.min() < 0:
            raise place.error(
                expected="items with tokens",
                found=f"{int((places < 0).sum())} without, the first "
                f"{item_ids[np.argmax(places < 0)]}",
                mend="give new items tokens of the same vocabulary with `farewell tokenize "
                "--update`, and load the predictor with tokens=FOLDER",
            )
        values, lengths = self._tokens.take(places)
        return values.astype(np.int64, copy=False), lengths


class EncodedRows:
    """An item is what a DIG model has encoded it to.

    Args:
        item_ids: of the encoded items, in their order.
    """

    def __init__(self, item_ids: NDArray[np.int64]) -> None:
        if len(np.unique(item_ids)) < len(item_ids):
            raise ServingError("identity.safetensors: an encoded item stands twice")
        self._index = IdIndex(item_ids)

    def rows(self, item_ids: NDArray[np.int64], place: Place) -> Rows:
        """Places among the encoded items."""
        found = self._index.rows(item_ids).astype(np.int64)
        if len(found) and found.min() < 0:
            raise place.error(
                expected="items that the export has encoded",
                found=f"{int((found < 0).sum())} others, the first "
                f"{item_ids[np.argmax(found < 0)]}",
                mend="add new items to items.parquet (and their texts with `farewell embed`) and "
                "export the run again: nothing is trained",
            )
        return found, np.ones_like(found)


def rows_of_items(
    item: ItemConfig | LearnedTokensConfig,
    tables: Mapping[str, TableSpec],
    tokens: TokenArtifact | None,
    arrays: Mapping[str, NDArray[Any]],
) -> dict[str, RowsOfItems]:
    """What each feature of the item encoder looks up, in the encoder's order.

    Args:
        item: what stands for an item.
        tables: item feature -> table.
        tokens: artifact, for models that read tokens.
        arrays: of `identity.safetensors`.

    Raises:
        ServingError: when something is missing or does not fit.
    """
    if isinstance(item, LearnedTokensConfig):
        return {ITEM_ROW: EncodedRows(_ids(arrays, ENCODED_ITEMS))}
    found: dict[str, RowsOfItems] = {}
    if isinstance(item, TokenItemConfig):
        if tokens is None:
            raise ServingError("model.json: items are tokens, but the export holds none")
        if tokens.num_levels != item.num_levels:
            raise ServingError(
                f"tokens: {tokens.num_levels} levels, the model reads {item.num_levels}"
            )
        mem_rows = tables[MEM_TOKEN].rows if item.mem_tokens else 1
        index = IdIndex(tokens.item_ids)
        for feature, rows in token_rows(tokens, mem_rows=mem_rows).items():
            if feature in item.features:
                found[feature] = TokenRows(index, rows)
        gen_rows = tokens.num_levels * tokens.num_codes
        if item.gen_tokens and gen_rows > tables[GEN_TOKEN].rows:
            raise ServingError(
                f"tokens: {gen_rows} gen-tokens, table {tables[GEN_TOKEN].name!r} has "
                f"{tables[GEN_TOKEN].rows} rows"
            )
    if ITEM_ID in item.features:
        found[ITEM_ID] = _rows_of_ids(item, tables[ITEM_ID], arrays)
    return {feature: found[feature] for feature in item.features}


def _rows_of_ids(
    item: ItemConfig, table: TableSpec, arrays: Mapping[str, NDArray[Any]]
) -> RowsOfItems:
    def array(name: str) -> NDArray[np.int64]:
        return _ids(arrays, f"{table.name}/{name}")

    if table.managed is not None:
        return ManagedRows(array("hashes"), array("rows"), array("shared"), num_rows=table.rows)
    if isinstance(item, TokenItemConfig):
        return KeptRows(array("item_ids"), num_rows=table.rows)
    return HashedRows(table.rows) if item.rows == "hashed" else OwnRows(table.rows)


def _ids(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.int64]:
    values = arrays.get(name)
    if values is None or values.dtype != np.int64 or values.ndim != 1:
        raise ServingError(
            f"identity.safetensors: expected int64 {name}, found "
            f"{'nothing' if values is None else f'{values.dtype} {values.shape}'}"
        )
    return values
