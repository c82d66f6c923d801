import pytest
import torch

from trainer.modules.recent_history import STEEPEST, RecentHistory

DIM, KINDS, ITEMS = 3, 2, 6
# (item, kind) of each row, kinds one after the other, oldest first
ROWS = [[(1, 0), (4, 0), (0, 1)], [], [(2, 1)], [(5, 0), (5, 0), (3, 0), (3, 1), (1, 1)]]


@pytest.fixture
def past():
    positions = [position for row in ROWS for position in row]
    offsets = torch.tensor([0, *(len(row) for row in ROWS)]).cumsum(0)
    return *torch.tensor(positions).T, offsets


@pytest.mark.parametrize("num_heads", [1, 3])
def test_vectors_equal_a_loop_over_rows_and_positions(past, num_heads):
    torch.manual_seed(0)
    module = RecentHistory(DIM, num_kinds=KINDS, num_heads=num_heads)
    item_UD, value_ND = torch.randn(ITEMS, DIM), torch.randn(ITEMS * KINDS, DIM)
    found = module(item_UD, value_ND, *past)
    assert found.shape == (len(ROWS), num_heads * DIM)
    for row, positions in enumerate(ROWS):
        for head in range(num_heads):
            expected = torch.zeros(DIM)
            slope = STEEPEST * head / max(1, num_heads - 1)
            logits = []
            for at, (item, kind) in enumerate(positions):
                age = sum(1 for _, other in positions[at + 1 :] if other == kind)
                query = module.score.weight[kind * num_heads + head]
                logits.append(query @ item_UD[item] - slope * torch.log(torch.tensor(1.0 + age)))
            if positions:
                weights = torch.stack(logits).softmax(0)
                for weight, (item, kind) in zip(weights, positions, strict=True):
                    expected = expected + weight * value_ND[item * KINDS + kind]
            part = found[row, head * DIM : (head + 1) * DIM]
            torch.testing.assert_close(part, expected)


def test_no_history_in_the_whole_batch_gives_zeros():
    module = RecentHistory(DIM, num_kinds=KINDS, num_heads=2)
    nothing = torch.zeros(0, dtype=torch.int64)
    found = module(
        torch.randn(ITEMS, DIM),
        torch.randn(ITEMS * KINDS, DIM),
        nothing,
        nothing,
        torch.zeros(5, dtype=torch.int64),
    )
    assert torch.equal(found, torch.zeros(4, 2 * DIM))
