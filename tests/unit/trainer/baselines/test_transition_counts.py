from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from trainer.baselines.popularity import PopularityConfig
from trainer.baselines.transition_counts import TransitionCountsConfig
from trainer.data.ragged import Ragged
from trainer.retrieval_task import RetrievalCases, RetrievalTask

NUM_ITEMS, NUM_USERS = 40, 60
NO_DATASET: Any = None


def ragged(lists: list[list[int]]) -> Ragged:
    flat = np.array([item for one in lists for item in one], dtype=np.int64)
    return Ragged.from_lengths(flat, np.array([len(one) for one in lists], dtype=np.int64))


def no_cases() -> RetrievalCases:
    nothing = np.zeros(0, dtype=np.int64)
    return RetrievalCases(user=nothing, row=nothing, history=ragged([]), target=nothing)


def random_lists(rng: np.random.Generator, number: int, first_item: int = 0) -> list[list[int]]:
    return [rng.integers(first_item, NUM_ITEMS, rng.integers(0, 9)).tolist() for _ in range(number)]


@pytest.fixture(params=[False, True])
def sequences_and_task(request):
    sequences = random_lists(np.random.default_rng(2), NUM_USERS, first_item=5)
    task = RetrievalTask(
        num_items=NUM_ITEMS,
        users=np.arange(NUM_USERS),
        train=ragged(sequences),
        valid=no_cases(),
        test=no_cases(),
        leave_out_history=request.param,
    )
    return sequences, task


@pytest.mark.parametrize("last", [1, 5])
def test_transition_counts_against_a_loop(sequences_and_task, last, monkeypatch):
    sequences, task = sequences_and_task
    monkeypatch.setattr("trainer.baselines.transition_counts._SCORED_VALUES", 7 * NUM_ITEMS)
    follows = Counter((a, b) for one in sequences for a, b in pairwise(one))
    seen = Counter(item for one in sequences for item in one)
    retriever = TransitionCountsConfig(last=last).build(NO_DATASET)
    retriever.fit(task, seed=0)
    histories = random_lists(np.random.default_rng(3), 30)
    k = NUM_ITEMS
    lists = retriever.top(ragged(histories), k)
    for history, found in zip(histories, lists.tolist(), strict=True):
        near = list(enumerate(history[::-1][:last], start=1))

        def score(item, near=near):
            return (round(sum(follows[a, item] / d for d, a in near), 9), seen[item])

        left = set(range(NUM_ITEMS)) - (set(history) if task.leave_out_history else set())
        assert set(found) - {-1} == left
        # Items with equal scores may stand in any order.
        got = [score(item) for item in found[: len(left)]]
        assert got == sorted(map(score, left), reverse=True)
        assert found[len(left) :] == [-1] * (k - len(left))


def test_popularity_against_a_loop(sequences_and_task):
    sequences, task = sequences_and_task
    seen = Counter(item for one in sequences for item in one)
    ranked = sorted(range(NUM_ITEMS), key=lambda item: (-seen[item], item))
    retriever = PopularityConfig().build(NO_DATASET)
    retriever.fit(task, seed=0)
    histories = [*random_lists(np.random.default_rng(3), 5), ranked[:8]]
    for k in (3, NUM_ITEMS + 2):
        lists = retriever.top(ragged(histories), k)
        for history, found in zip(histories, lists.tolist(), strict=True):
            left_out = history if task.leave_out_history else []
            wanted = [item for item in ranked if item not in left_out]
            assert found == (wanted + [-1] * k)[:k]


def test_settings_are_checked():
    with pytest.raises(ValueError, match="last is 0"):
        TransitionCountsConfig(last=0)
