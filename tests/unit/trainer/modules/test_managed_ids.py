import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from sharding.managed_ids import ManagedIds
from sharding.tables import TableSpec
from tests.unit.trainer.modules.naive_rows import HASH_SIZE, NaiveRows, hashed
from trainer.data.hashing import hash_buckets
from trainer.modules.managed_ids import RowManager, managed_collection, row_managers, spread

ROWS, INTERVAL = 9, 3
POLICIES = ("lru", "lfu", "distance_lfu")
RAW_IDS = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 40)


def manager(policy, rows=ROWS, interval=INTERVAL):
    managed = ManagedIds(policy=policy, eviction_interval=interval)
    return RowManager(managed=managed, name="t", zch_size=rows, device=torch.device("cpu"))


def jagged(ids):
    values = torch.tensor(np.asarray(ids, dtype=np.int64))
    return {"t": JaggedTensor(values=values, lengths=torch.ones(len(values)).long())}


def rows_of(module, ids):
    was_training = module.training
    module.eval()
    rows = module(jagged(ids))["t"].values().tolist()
    module.train(was_training)
    return rows


def drifting_stream(num_steps=40, seed=1):
    """Raw ids of each step; which ids are frequent moves on."""
    rng = np.random.default_rng(seed)
    for step in range(num_steps):
        centre = 30 * step / num_steps
        weights = np.exp(-(((np.arange(len(RAW_IDS)) - centre) / 4) ** 2)) + 0.01
        size = rng.integers(0, 12)
        yield rng.choice(RAW_IDS, size, p=weights / weights.sum()).tolist()


def test_ids_are_spread_as_numpy_spreads_them():
    ids = np.concatenate([RAW_IDS, np.arange(-5, 50), [2**63 - 1, -(2**63)]])
    found = spread(torch.from_numpy(ids), HASH_SIZE)
    assert found.tolist() == hash_buckets(ids, HASH_SIZE).tolist()
    assert found.tolist() == [hashed(int(one)) for one in ids]


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_change_hands_as_in_the_naive_reference(policy):
    module, naive = manager(policy), NaiveRows(ROWS, INTERVAL, policy)
    num_changed = 0
    for ids in drifting_stream():
        module(jagged(ids))
        naive.step([hashed(one) for one in ids])
        assert rows_of(module, RAW_IDS) == [naive.row_of(hashed(int(one))) for one in RAW_IDS]
        changed = module.evict()
        assert sorted([] if changed is None else changed.tolist()) == sorted(naive.changed)
        num_changed += len(naive.changed)
    assert num_changed > ROWS  # rows were taken back, not only given


def test_hot_newcomer_gets_the_row_of_an_id_that_stays_away():
    module = manager("distance_lfu", rows=3, interval=1)
    for _ in range(4):
        module(jagged([11, 12]))
    assert sorted(rows_of(module, [11, 12])) == [0, 1]
    row_12, shared = rows_of(module, [12, 99])
    assert shared == 2
    for _ in range(8):
        module(jagged([11, 13, 13, 13]))
    assert rows_of(module, [11, 13]) == [1 - row_12, row_12]
    assert rows_of(module, [12]) == [shared]


def test_evaluation_changes_nothing():
    module = manager("lfu")
    for ids in drifting_stream(10):
        module(jagged(ids))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pending = module.pending
    module.eval()
    for ids in drifting_stream(10, seed=2):
        module(jagged(ids))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(module.pending, pending) and pending.numel()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stop", [0, 7, 12])  # between rounds, and at one
def test_state_between_two_rounds_can_be_saved_and_put_back(policy, stop):
    whole, first, second = manager(policy), manager(policy), manager(policy)
    stream = list(drifting_stream(24))
    for ids in stream:
        whole(jagged(ids))
    for ids in stream[:stop]:
        first(jagged(ids))
    second.load_state_dict(first.state_dict())
    second.pending = first.pending
    for ids in stream[stop:]:
        second(jagged(ids))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_an_id_without_a_row_shares_the_last_one_and_every_id_counts_from_an_empty_step_on():
    module = manager("lfu", rows=5, interval=2)
    module(jagged([]))
    module(jagged(RAW_IDS[:4]))
    assert sorted(rows_of(module, RAW_IDS[:4])) == [0, 1, 2, 3]
    assert rows_of(module, RAW_IDS[4:9]) == [4] * 5


def test_collection_returns_the_embeddings_of_the_rows():
    table = TableSpec(
        name="item_id",
        rows=5,
        dim=4,
        features=("item_id",),
        role="item_id",
        pooling="none",
        managed=ManagedIds(eviction_interval=1),
    )
    torch.manual_seed(0)
    collection = managed_collection([table], torch.device("cpu"))
    ids = KeyedJaggedTensor.from_lengths_sync(
        keys=["other", "item_id"],
        values=torch.tensor([1, 2, *RAW_IDS[:3].tolist()]),
        lengths=torch.tensor([1, 1, 0, 1, 1, 1]),
    )
    embeddings, _ = collection(ids)
    rows = rows_of(row_managers(collection)["item_id"], RAW_IDS[:3])
    assert len(set(rows)) == 3 and 4 not in rows
    weight = collection.get_parameter("_embedding_module.embeddings.item_id.weight")
    assert torch.equal(embeddings["item_id"].values(), weight[rows])
