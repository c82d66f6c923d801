from __future__ import annotations

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from tokenization.alignment import Alignment
from tokenization.contrastive import contrastive_loss
from tokenization.pairs import Pairs


def world(num_items=240, seed=0):
    """Content tells the group in a few of its dimensions; the others are louder noise."""
    rng = np.random.default_rng(seed)
    group = np.arange(num_items) % 8
    codes = np.random.default_rng(42).normal(size=(8, 4))
    noise = rng.normal(size=(num_items, 12)) * 2
    content = np.concatenate([codes[group], noise], axis=1).astype(np.float32)
    return np.arange(num_items) * 10, content, group


def pairs_of(item_ids, group, num_pairs=3000, seed=1):
    rng = np.random.default_rng(seed)
    left = rng.integers(0, len(item_ids), 20 * num_pairs)
    right = rng.integers(0, len(item_ids), 20 * num_pairs)
    kept = np.flatnonzero((group[left] == group[right]) & (left != right))[:num_pairs]
    return Pairs(
        left=item_ids[left[kept]],
        right=item_ids[right[kept]],
        count=np.ones(len(kept), dtype=np.int64),
        score=np.ones(len(kept)),
    )


def precision_at_10(embeddings, group, rows):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    scores = unit[rows] @ unit.T
    scores[np.arange(len(rows)), rows] = -2
    nearest = np.argsort(-scores, axis=1)[:, :10]
    return (group[nearest] == group[rows][:, None]).mean()


def test_the_loss_is_equation_3():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    unit_a = a / np.linalg.norm(a, axis=1, keepdims=True)
    unit_b = b / np.linalg.norm(b, axis=1, keepdims=True)
    similarity = np.exp(unit_a @ unit_b.T / 0.3)
    expected = -np.log(np.diag(similarity) / similarity.sum(axis=1)).mean()
    loss = contrastive_loss(torch.tensor(a), torch.tensor(b), temperature=0.3)
    assert float(loss) == pytest.approx(expected)


def test_candidates_that_are_no_negatives_are_left_out_but_never_the_positive():
    rng = np.random.default_rng(0)
    a, b = torch.tensor(rng.normal(size=(2, 3, 4)))
    same = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    logits = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    rows = [logits[0, [0, 2]], logits[1, [1, 0, 2]], logits[2, [2, 0, 1]]]
    expected = torch.stack([-torch.log_softmax(row / 0.5, dim=0)[0] for row in rows]).mean()
    loss = contrastive_loss(a, b, temperature=0.5, same_BG=same)
    torch.testing.assert_close(loss, expected)


def test_items_that_no_pair_knows_are_aligned_too():
    item_ids, content, group = world()
    held = np.arange(240) >= 200
    pairs = pairs_of(item_ids[~held], group[~held])
    config = Alignment(hidden=32, num_epochs=20, batch_size=100, learning_rate=3e-3)
    aligned = config.fit(item_ids, content, pairs).encode(content)
    rows = np.flatnonzero(held)
    assert precision_at_10(content, group, rows) < 0.3
    assert precision_at_10(aligned, group, rows) > 0.6
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=1), 1.0, rtol=1e-5)


def test_same_seed_same_embeddings():
    item_ids, content, group = world()
    config = Alignment(hidden=8, num_epochs=1, batch_size=100, out_dim=5)
    first, again = (
        config.fit(item_ids, content, pairs_of(item_ids, group)).encode(content) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == (240, 5)


def test_bad_pairs_and_settings():
    item_ids, content, group = world()
    with pytest.raises(ValueError, match="expected at least two of items that have embeddings"):
        Alignment().fit(item_ids + 100_000, content, pairs_of(item_ids, group))
    with pytest.raises(ValueError, match="temperature and dropout"):
        Alignment(temperature=0.0)
    with pytest.raises(ValueError, match="batch_size: expected at least 2"):
        Alignment(batch_size=1)


WORKER = """
import sys
import numpy as np
import torch
import torch.distributed as dist
from tokenization.contrastive import contrastive_loss

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
values = torch.tensor(np.random.default_rng(0).normal(size=(2, 8, 3)))
weight = torch.eye(3, dtype=torch.float64).requires_grad_()
mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
loss = contrastive_loss(values[0, mine] @ weight, values[1, mine] @ weight, temperature=0.2)
loss.backward()
dist.all_reduce(weight.grad)
dist.all_reduce(loss)
if rank == 0:
    np.save(sys.argv[1], np.append(weight.grad.numpy().ravel(), loss.detach().numpy()) / size)
dist.destroy_process_group()
"""


def test_ranks_share_their_negatives_and_the_gradients_are_those_of_one_process(tmp_path):
    values = torch.tensor(np.random.default_rng(0).normal(size=(2, 8, 3)))
    weight = torch.eye(3, dtype=torch.float64).requires_grad_()
    loss = contrastive_loss(values[0] @ weight, values[1] @ weight, temperature=0.2)
    loss.backward()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path / "result.npy")],
            env={**os.environ, **shared, "PYTHONPATH": os.getcwd(), "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = np.append(weight.grad.numpy().ravel(), loss.detach().numpy())
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), expected, rtol=1e-10)


@pytest.mark.parametrize("num_epochs", [1, 2, 20])
def test_few_pairs_are_enough_for_a_step_an_epoch(num_epochs):
    item_ids, content, group = world(40)
    pairs = pairs_of(item_ids, group, num_pairs=30)
    config = Alignment(hidden=8, num_epochs=num_epochs)
    assert config.fit(item_ids, content, pairs).encode(content).shape == content.shape
