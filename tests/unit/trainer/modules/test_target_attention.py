import pytest
import torch

from trainer.modules.target_attention import FeedbackSum, TargetAttention, softmax_by_row

DIM, NUM_ITEMS, NUM_KINDS = 6, 10, 2
LENGTHS = [3, 0, 1, 5, 0]


@pytest.fixture
def past():
    """item_UD, candidate_B, history_T, history_kind_T, history_offsets."""
    generator = torch.Generator().manual_seed(1)
    total = sum(LENGTHS)
    return (
        torch.randn(NUM_ITEMS, DIM, generator=generator),
        torch.randint(NUM_ITEMS, (len(LENGTHS),), generator=generator),
        torch.randint(NUM_ITEMS, (total,), generator=generator),
        torch.randint(NUM_KINDS, (total,), generator=generator),
        torch.tensor([0, *LENGTHS]).cumsum(0),
    )


def of_kind(weight, kind):
    return weight[kind * DIM : (kind + 1) * DIM]


def naive_attention(module, item_UD, candidate_B, history_T, kind_T, offsets):
    rows = []
    for row, candidate in enumerate(candidate_B):
        query = module.query(item_UD[candidate])
        positions = range(int(offsets[row]), int(offsets[row + 1]))
        scores, values = [], []
        for at in positions:
            item, kind = item_UD[history_T[at]], int(kind_T[at])
            scores.append(query @ (of_kind(module.key.weight, kind) @ item) / DIM**0.5)
            values.append(of_kind(module.value.weight, kind) @ item)
        if not values:
            rows.append(torch.zeros(DIM))
            continue
        weights = torch.softmax(torch.stack(scores), 0)
        rows.append(sum(w * v for w, v in zip(weights, values, strict=True)))
    return torch.stack(rows)


def naive_feedback(module, item_UD, candidate_B, history_T, kind_T, offsets):
    rows = []
    for row, candidate in enumerate(candidate_B):
        total = torch.zeros(DIM)
        positions = range(int(offsets[row]), int(offsets[row + 1]))
        for at in positions:
            weight = of_kind(module.value.weight, int(kind_T[at]))
            total = total + weight @ item_UD[history_T[at]] / len(positions) ** 0.5
        rows.append(torch.cat([total, module.query(item_UD[candidate]) * total]))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("kind", "naive"), [(TargetAttention, naive_attention), (FeedbackSum, naive_feedback)]
)
def test_equals_a_loop_over_rows_in_value_and_gradient(past, kind, naive):
    torch.manual_seed(2)
    module = kind(DIM, num_kinds=NUM_KINDS)
    item_UD, *rest = past
    first = item_UD.clone().requires_grad_()
    second = item_UD.clone().requires_grad_()
    found, expected = module(first, *rest), naive(module, second, *rest)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    found.backward(direction)
    gradients = [weight.grad.clone() for weight in module.parameters()]
    module.zero_grad()
    expected.backward(direction)
    torch.testing.assert_close(first.grad, second.grad)
    for gradient, weight in zip(gradients, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, weight.grad)
        assert gradient.any()


@pytest.mark.parametrize("kind", [TargetAttention, FeedbackSum])
def test_row_without_history_is_zero(past, kind):
    out = kind(DIM, num_kinds=NUM_KINDS)(*past)
    assert not out[1].any()
    assert not out[4].any()
    assert out[0].any()


@pytest.mark.parametrize("kind", [TargetAttention, FeedbackSum])
def test_batch_without_any_history_is_zero_and_trains(kind):
    module = kind(DIM, num_kinds=NUM_KINDS)
    empty = torch.zeros(0, dtype=torch.int64)
    out = module(torch.randn(3, DIM), torch.tensor([0, 1]), empty, empty, torch.zeros(3).long())
    assert out.shape[0] == 2
    assert not out.any()
    out.sum().backward()
    assert module.value.weight.grad is not None


def test_softmax_by_row_equals_softmax_of_each_row():
    score_T = torch.randn(9, dtype=torch.float64, requires_grad=True)
    row_T = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    found = softmax_by_row(score_T, row_T, 4)
    expected = torch.cat([torch.softmax(score_T[row_T == row], 0) for row in range(4)])
    torch.testing.assert_close(found, expected)
    direction = torch.randn(9, dtype=torch.float64)
    (one,) = torch.autograd.grad(found, score_T, direction)
    (other,) = torch.autograd.grad(expected, score_T, direction)
    torch.testing.assert_close(one, other)


def test_softmax_by_row_survives_large_scores():
    score_T = torch.tensor([1e4, 1e4 - 1, -1e4, 90.0])
    found = softmax_by_row(score_T, torch.tensor([0, 0, 1, 1]), 2)
    expected = torch.tensor([0.7310586, 0.2689414, 0.0, 1.0])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
