from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tokenization.pairs import ClickLog
from tokenization.sasrec import SASRec, SASRecNetwork, read_sequences


def write(tmp_path, users, items):
    pq.write_table(pa.table({"user_id": users, "item_id": items}), tmp_path / "log.parquet")
    return ClickLog(path=tmp_path / "log.parquet")


def test_sequences_are_each_user_s_last_clicks_in_time_order(tmp_path):
    log = write(tmp_path, [1, 2, 1, 3, 1, 2, 1], [10, 30, 20, 10, 30, 10, 20])
    item_ids, sequences = read_sequences(log, 3)
    assert item_ids.tolist() == [10, 20, 30]
    assert sequences.tolist() == [[2, 3, 2], [3, 1, 0]]  # user 3 clicked once
    with pytest.raises(ValueError, match="users with two clicks or more, found none"):
        read_sequences(write(tmp_path, [1, 2], [1, 1]), 3)


def test_no_state_sees_a_later_click():
    torch.manual_seed(0)
    network = SASRecNetwork(9, SASRec(dim=8, max_length=6)).eval()
    clicks = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = clicks.clone()
    changed[0, 3:] = torch.tensor([7, 8, 9])
    with torch.no_grad():
        torch.testing.assert_close(network(clicks)[:, :3], network(changed)[:, :3])
        assert not torch.allclose(network(clicks)[:, 3:], network(changed)[:, 3:])


@torch.no_grad()
def test_the_loss_is_that_of_each_next_click_among_the_negatives():
    torch.manual_seed(0)
    network = SASRecNetwork(9, SASRec(dim=8, max_length=3)).eval()
    torch.nn.init.normal_(network.items.weight)
    sequences, negatives = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]]), torch.tensor([3, 7])
    total = []
    for row, position, target in ((0, 0, 2), (0, 1, 3), (1, 0, 5)):
        state = network(sequences[row : row + 1, :3])[0, position]
        candidates = [target, *(n for n in negatives.tolist() if n != target)]
        scores = network.items.weight[candidates] @ state
        total.append(-torch.log_softmax(scores, dim=0)[0])
    torch.testing.assert_close(network.loss(sequences, negatives), torch.stack(total).mean())


def test_items_that_are_clicked_in_a_row_come_to_lie_together(tmp_path):
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 300)
    items = (group[:, None] * 10 + rng.integers(0, 10, (300, 8))).reshape(-1)
    log = write(tmp_path, np.repeat(np.arange(300), 8), items)
    config = SASRec(dim=16, max_length=8, num_epochs=12, num_negatives=20, learning_rate=5e-3)
    table = config.fit(log)
    assert table.item_ids.tolist() == list(range(40))
    unit = table.embeddings / np.linalg.norm(table.embeddings, axis=1, keepdims=True)
    same = np.equal.outer(np.arange(40) // 10, np.arange(40) // 10) & ~np.eye(40, dtype=bool)
    cosine = unit @ unit.T
    assert cosine[same].mean() > cosine[~same & ~np.eye(40, dtype=bool)].mean() + 0.3
    np.testing.assert_array_equal(config.fit(log).embeddings, table.embeddings)


def test_items_that_no_sequence_holds_get_no_embedding(tmp_path):
    users, items = [1, 1, 1, 1, 2, 3, 3], [10, 11, 12, 13, 14, 12, 15]
    config = SASRec(dim=4, num_heads=1, max_length=2, num_epochs=1)
    table = config.fit(write(tmp_path, users, items))
    assert table.item_ids.tolist() == [11, 12, 13, 15]
    assert table.embeddings.shape == (4, 4)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="num_heads: expected a divisor of dim 10, found 3"):
        SASRec(dim=10, num_heads=3)
    with pytest.raises(ValueError, match="max_length: expected at least 2"):
        SASRec(max_length=1)


def test_users_of_like_length_train_together_and_each_of_them_once():
    seen = []

    class Recording(SASRecNetwork):
        def loss(self, sequences_BT, negatives_S):
            seen.append(sequences_BT)
            return super().loss(sequences_BT, negatives_S)

    length = 2 + np.arange(48) % 6
    users = np.arange(1, 49)[:, None] * (np.arange(8) < length[:, None])
    config = SASRec(dim=4, num_heads=1, max_length=7, num_epochs=2, batch_size=8, num_negatives=3)
    list(config.epochs(Recording(48, config), users))
    for epoch in (seen[:6], seen[6:]):
        assert sorted(int(row[0]) for batch in epoch for row in batch) == list(range(1, 49))
        # Six lengths in six batches: nothing but their own clicks is computed.
        assert all(bool((batch > 0).all()) for batch in epoch)
        assert len({batch.shape[1] for batch in epoch}) == 6
    assert [b.tolist() for b in seen[:6]] != [b.tolist() for b in seen[6:]]
