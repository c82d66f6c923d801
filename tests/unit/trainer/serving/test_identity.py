from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor

from sharding.managed_ids import ManagedIds
from sharding.tables import TableSpec
from trainer.data.errors import DataError, Place
from trainer.data.id_index import IdIndex
from trainer.data.ragged import Ragged
from trainer.modules.hybrid_tokens import HybridTokensConfig, ItemIdConfig
from trainer.modules.managed_ids import HASH_SIZE, RowManager, spread
from trainer.serving.folder import ServingError
from trainer.serving.identity import (
    HashedRows,
    KeptRows,
    ManagedRows,
    OwnRows,
    TokenRows,
    rows_of_items,
)

PLACE = Place(Path("request"), "item_id")
NUM_ROWS = 12
RAW = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 60)


def shards(world_size):
    """Each rank's map after it has seen some ids: TorchRec's own module."""
    rng = np.random.default_rng(1)
    seen = torch.from_numpy(rng.choice(RAW, 25, replace=False))
    hashed = spread(seen, HASH_SIZE)
    part = NUM_ROWS // world_size
    managers = []
    for rank in range(world_size):
        manager = RowManager(
            managed=ManagedIds(policy="lru", eviction_interval=1),
            zch_size=part,
            device=torch.device("cpu"),
            output_global_offset=rank * part,
            output_segments=list(range(0, NUM_ROWS + 1, part)),
            buckets=world_size,
        )
        own = hashed[hashed // (HASH_SIZE // world_size) == rank]
        manager.profile({"item_id": jagged(own)})
        managers.append(manager)
    return managers


def jagged(values):
    return JaggedTensor(values=values, lengths=torch.ones(len(values)).long())


def torchrec_rows(managers, ids):
    """The row that each id has in training: by the rank that its hash names."""
    found = []
    for value in spread(torch.from_numpy(ids), HASH_SIZE):
        rank = int(value) // (HASH_SIZE // len(managers))
        feature = {"item_id": jagged(value[None])}
        found.append(int(managers[rank].remap(feature)["item_id"].values()))
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_managed_rows_are_those_of_torchrec(world_size):
    managers = shards(world_size)
    part = NUM_ROWS // world_size
    hashes, rows = [], []
    for manager in managers:
        used = manager._mch_sorted_raw_ids[:-1] != torch.iinfo(torch.int64).max
        hashes.append(manager._mch_sorted_raw_ids[:-1][used].numpy())
        rows.append(manager._mch_remapped_ids_mapping[:-1][used].numpy())
    found = ManagedRows(
        np.concatenate(hashes),
        np.concatenate(rows),
        np.arange(part - 1, NUM_ROWS, part),
        num_rows=NUM_ROWS,
    )
    values, lengths = found.rows(RAW, PLACE)
    assert values.tolist() == torchrec_rows(managers, RAW)
    assert lengths.tolist() == [1] * len(RAW)
    assert len(set(values)) > NUM_ROWS // 2  # rows are had, not only shared


@pytest.mark.parametrize(
    ("hashes", "rows", "shared"),
    [
        ([3, 3], [0, 1], [5]),
        ([3, 2], [0, 1], [5]),
        ([2, 3], [0], [5]),
        ([2, 3], [0, 12], [5]),
        ([2, 3], [0, -1], [5]),
        ([2, 3], [0, 1], []),
        ([2, 3], [0, 1], [12]),
    ],
)
def test_maps_that_make_no_sense_are_refused(hashes, rows, shared):
    with pytest.raises(ServingError, match="map of a managed table makes no sense"):
        ManagedRows(*(np.array(one, dtype=np.int64) for one in (hashes, rows, shared)), num_rows=12)


def test_own_rows_end_with_the_table():
    values, _ = OwnRows(5).rows(np.array([4, 0]), PLACE)
    assert values.tolist() == [4, 0]
    for bad in (5, -1):
        with pytest.raises(DataError, match=rf"ids in \[0, 5\), found {bad}; train a model with"):
            OwnRows(5).rows(np.array([1, bad]), PLACE)


def test_hashed_rows_take_any_id():
    values, _ = HashedRows(5).rows(RAW, PLACE)
    assert set(values) == set(range(5))


def test_kept_rows_are_empty_for_other_items():
    kept = KeptRows(np.array([70, 7, 7000]), num_rows=4)
    values, lengths = kept.rows(np.array([7, 8, 7000, 70]), PLACE)
    assert values.tolist() == [1, 2, 0]
    assert lengths.tolist() == [1, 0, 1, 1]
    for bad in ([1, 2, 3, 4, 5], [1, 1]):
        with pytest.raises(ServingError, match="make no sense"):
            KeptRows(np.array(bad), num_rows=4)


def test_tokens_of_items_and_of_unknown_ones():
    tokens = Ragged(np.array([5, 6, 7, 8]), np.array([0, 1, 1, 4]))
    found = TokenRows(IdIndex(np.array([30, 10, 20])), tokens)
    values, lengths = found.rows(np.array([20, 10, 30]), PLACE)
    assert values.tolist() == [6, 7, 8, 5]
    assert lengths.tolist() == [3, 0, 1]
    with pytest.raises(DataError, match=r"found 2 without, the first 11; .*tokenize --update"):
        found.rows(np.array([10, 11, 12]), PLACE)


def test_what_is_missing_or_of_another_kind_is_named():
    table = TableSpec(
        name="item_id",
        rows=4,
        dim=4,
        features=("item_id",),
        role="item_id",
        pooling="none",
        managed=ManagedIds(),
    )
    item = ItemIdConfig(table_dim=4, item_dim=4, rows="managed")
    with pytest.raises(ServingError, match="expected int64 item_id/hashes, found nothing"):
        rows_of_items(item, {"item_id": table}, None, {})
    arrays = {"item_id/hashes": np.zeros(3)}
    with pytest.raises(ServingError, match="expected int64 item_id/hashes, found float64"):
        rows_of_items(item, {"item_id": table}, None, arrays)
    with pytest.raises(ServingError, match="items are tokens, but the export holds none"):
        rows_of_items(HybridTokensConfig(num_levels=2, table_dim=4, item_dim=4), {}, None, {})
