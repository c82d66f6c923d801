from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tokenization.sasrec import SASRec, SASRecNetwork
from trainer.baselines.popularity import Popularity
from trainer.baselines.sasrec_retriever import SASRecRetriever, SASRecRetrieverConfig
from trainer.data.ragged import Ragged
from trainer.ranked_lists import score_lists
from trainer.retrieval_task import RetrievalCases, RetrievalTask

NUM_ITEMS, NUM_USERS, LENGTH = 30, 200, 7
CONFIG = SASRec(
    dim=16, max_length=5, num_layers=1, num_negatives=20, num_epochs=30, learning_rate=1e-2
)


def retriever_of(config: SASRec, **changes: int) -> SASRecRetriever:
    nothing: Any = None
    return SASRecRetrieverConfig(sasrec=config, **changes).build(nothing)


def cycle_task(*, leave_out_history: bool = False) -> RetrievalTask:
    """Every user walks on through the same circle of items."""
    first = np.random.default_rng(0).integers(0, NUM_ITEMS, NUM_USERS)
    walk = (first[:, None] + np.arange(LENGTH + 2)) % NUM_ITEMS
    lengths = np.full(NUM_USERS, LENGTH)
    lengths[0] = 1

    def cases(end: int) -> RetrievalCases:
        return RetrievalCases(
            user=np.arange(NUM_USERS),
            row=np.arange(NUM_USERS),
            history=Ragged.from_lengths(walk[:, :end].reshape(-1), np.full(NUM_USERS, end)),
            target=walk[:, end],
        )

    return RetrievalTask(
        num_items=NUM_ITEMS,
        users=np.arange(NUM_USERS),
        train=Ragged.from_lengths(
            np.concatenate([one[:n] for one, n in zip(walk, lengths, strict=True)]), lengths
        ),
        valid=cases(LENGTH),
        test=cases(LENGTH + 1),
        leave_out_history=leave_out_history,
    )


@pytest.fixture(scope="module")
def fitted() -> tuple[RetrievalTask, SASRecRetriever]:
    task = cycle_task()
    retriever = retriever_of(CONFIG)
    retriever.fit(task, seed=1)
    return task, retriever


def test_it_learns_what_popularity_cannot(fitted):
    task, retriever = fitted
    popular = Popularity()
    popular.fit(task, seed=0)
    recall = {
        row.title: score_lists(row.top(task.test.history, 5), task.test, at=(1, 5))
        for row in (retriever, popular)
    }
    assert recall["SASRec"][1].mean()["recall"] > 0.9
    assert recall["popularity"][5].mean()["recall"] < 0.5


@torch.no_grad()
def test_lists_are_products_with_the_last_state(fitted, monkeypatch):
    task, retriever = fitted
    monkeypatch.setattr("trainer.baselines.sasrec_retriever._SCORED_VALUES", 2_000)
    histories = [[3], [7, 8, 9, 10, 11, 12, 13, 14], [], [4, 4]]
    flat = Ragged.from_lengths(
        np.array([item for one in histories for item in one]),
        np.array([len(one) for one in histories]),
    )
    lists = retriever.top(flat, NUM_ITEMS)
    network = retriever._network
    for history, found in zip(histories, lists, strict=True):
        if history:
            state = network(torch.tensor([history[-CONFIG.max_length :]]) + 1)[0, -1]
            scores = (network.items.weight[1:] @ state).numpy()
        else:
            scores = np.bincount(task.train.values, minlength=NUM_ITEMS)
        assert sorted(found.tolist()) == list(range(NUM_ITEMS))
        # Up to what sums in another order change.
        assert (np.diff(scores[found]) <= 1e-4).all()


def test_known_items_are_left_out():
    task = cycle_task(leave_out_history=True)
    retriever = retriever_of(SASRec(dim=8, max_length=5, num_epochs=1))
    retriever.fit(task, seed=0)
    for case, found in enumerate(retriever.top(task.test.history, NUM_ITEMS).tolist()):
        known = set(task.test.history.gather(np.array([case])).values.tolist())
        assert set(found) - {-1} == set(range(NUM_ITEMS)) - known


def test_seeds_decide_and_the_best_epoch_is_kept(monkeypatch):
    task = cycle_task()
    lists = {}
    for run, seed in (("one", 3), ("again", 3), ("other", 4)):
        retriever = retriever_of(SASRec(dim=8, max_length=5, num_epochs=2))
        retriever.fit(task, seed=seed)
        lists[run] = retriever.top(task.test.history, 10)
    np.testing.assert_array_equal(lists["one"], lists["again"])
    assert (lists["one"] != lists["other"]).any()

    def spoil(self: SASRec, network: SASRecNetwork, sequences: np.ndarray):
        """The first epoch sets weights that count; later ones set others."""
        for epoch in range(self.num_epochs):
            torch.nn.init.constant_(network.items.weight, epoch + 1.0)
            spoil.epochs += 1
            yield 0.0

    spoil.epochs = 0
    monkeypatch.setattr(SASRec, "epochs", spoil)
    retriever = retriever_of(SASRec(num_epochs=50), check_every=2, patience=3)
    retriever.fit(task, seed=0)
    assert retriever._network.items.weight[1, 0] == 2.0  # equal items never get better
    assert spoil.epochs == 2 + 3 * 2


def test_without_pairs_there_is_nothing_to_learn():
    task = cycle_task()
    single = RetrievalTask(
        num_items=NUM_ITEMS,
        users=np.arange(2),
        train=Ragged(np.arange(2), np.arange(3)),
        valid=task.valid,
        test=task.test,
    )
    with pytest.raises(ValueError, match="two items or more, found none"):
        retriever_of(CONFIG).fit(single, seed=0)
    with pytest.raises(ValueError, match="patience is 0"):
        retriever_of(CONFIG, patience=0)
