from __future__ import annotations

import numpy as np
import pytest

from trainer.baselines.retriever import best_items, popularity, without_known
from trainer.data.ragged import Ragged
from trainer.retrieval_task import RetrievalCases, RetrievalTask

NUM_ITEMS = 9


def ragged(lists: list[list[int]]) -> Ragged:
    flat = np.array([item for one in lists for item in one], dtype=np.int64)
    return Ragged.from_lengths(flat, np.array([len(one) for one in lists]))


HISTORIES = [[1, 4], [], [0, 1, 2, 3, 4, 5, 6], [8, 8]]


@pytest.mark.parametrize("k", [1, 3, 9, 12])
@pytest.mark.parametrize("leave_out", [False, True])
def test_best_items_against_sorting(k, leave_out):
    scores = np.random.default_rng(0).normal(size=(4, NUM_ITEMS))
    scores[1, 2:] = -np.inf
    found = best_items(scores, k, left_out=ragged(HISTORIES) if leave_out else None)
    for row, known, best in zip(scores, HISTORIES, found.tolist(), strict=True):
        gone = set(known) if leave_out else set()
        wanted = [i for i in np.argsort(-row).tolist() if i not in gone and np.isfinite(row[i])]
        assert best == (wanted + [-1] * k)[:k]


@pytest.mark.parametrize("k", [2, 5, 12])
def test_known_items_leave_lists_in_order(k):
    rng = np.random.default_rng(1)
    ranked = np.stack([rng.permutation(NUM_ITEMS) for _ in HISTORIES])
    ranked[0, -3:] = -1
    found = without_known(ranked, ragged(HISTORIES), k, num_items=NUM_ITEMS)
    for row, known, best in zip(ranked.tolist(), HISTORIES, found.tolist(), strict=True):
        assert best == ([i for i in row if i not in known and i >= 0] + [-1] * k)[:k]


def test_popularity_counts_training_positives():
    none = RetrievalCases(
        user=np.zeros(0, np.int64),
        row=np.zeros(0, np.int64),
        history=ragged([]),
        target=np.zeros(0, np.int64),
    )
    task = RetrievalTask(
        num_items=4, users=np.arange(2), train=ragged([[1, 1, 2], [1]]), valid=none, test=none
    )
    assert popularity(task).tolist() == [0, 3, 1, 0]
