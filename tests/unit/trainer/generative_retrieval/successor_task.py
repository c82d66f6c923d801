"""A catalogue in which every item has one successor, and users who follow it."""

from __future__ import annotations

import numpy as np

from trainer.data.ragged import Ragged
from trainer.retrieval_task import RetrievalCases, RetrievalTask

NUM_ITEMS = 24


def successor_task(*, num_users=200, leave_out_history=False):
    """Users start anywhere in a ring of items and go on for four to eight steps.

    Returns:
        the task; the successor of each item (N,); codes (N, 2) of eight a level, all different.
    """
    rng = np.random.default_rng(0)
    ring = rng.permutation(NUM_ITEMS)
    successor = np.empty(NUM_ITEMS, dtype=np.int64)
    successor[ring] = np.roll(ring, -1)
    tuples = rng.permutation(64)[:NUM_ITEMS]
    codes = np.stack([tuples // 8, tuples % 8], axis=1).astype(np.int32)

    def walks(lengths):
        starts = rng.integers(0, NUM_ITEMS, len(lengths))
        return [
            ring[(start + np.arange(length)) % NUM_ITEMS]
            for start, length in zip(starts, lengths, strict=True)
        ]

    def cases(number):
        lists = walks(rng.integers(3, 8, number))
        return RetrievalCases(
            user=np.arange(number),
            row=np.arange(number),
            history=ragged([one[:-1] for one in lists]),
            target=np.array([one[-1] for one in lists]),
        )

    task = RetrievalTask(
        num_items=NUM_ITEMS,
        users=np.arange(num_users),
        train=ragged(walks(rng.integers(4, 9, num_users))),
        valid=cases(40),
        test=cases(60),
        leave_out_history=leave_out_history,
    )
    return task, successor, codes


def ragged(lists) -> Ragged:
    """Lists of item rows."""
    flat = np.concatenate([np.asarray(one, dtype=np.int64) for one in lists])
    return Ragged.from_lengths(flat, np.array([len(one) for one in lists]))
