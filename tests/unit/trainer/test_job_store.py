"""Ranks agree on a name for their start in a store that outlives them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from trainer.job_store import agree_on_start

LONG, SHORT = timedelta(seconds=20), timedelta(seconds=0.3)


def start(store, ranks, world_size, timeout=LONG):
    with ThreadPoolExecutor(len(ranks)) as pool:
        found = [pool.submit(agree_on_start, store, rank, world_size, timeout) for rank in ranks]
        return [one.result() for one in found]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_all_ranks_get_one_name_and_every_start_another(world_size):
    store = HashStore()
    names = [set(start(store, range(world_size), world_size)) for _ in range(3)]
    assert all(len(one) == 1 for one in names)
    assert len(set.union(*names)) == 3


def test_what_a_broken_start_left_is_not_taken_for_a_rank(monkeypatch):
    """Rank 2 of a start announced itself and died; the next start waits for a new one."""
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = HashStore()
    with pytest.raises(RuntimeError, match=r"rank 0 did not answer rank 2 within 0.3 s"):
        agree_on_start(store, 2, 3, SHORT)
    with pytest.raises(
        RuntimeError, match=r"ranks \[2\] of 3 did not come within 0.3 s: .*node-0:29500"
    ):
        start(store, [1, 0], 3, SHORT)
    assert len(set(start(store, [0, 1, 2], 3))) == 1
