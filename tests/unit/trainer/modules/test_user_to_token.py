import numpy as np
import pytest
import torch

from trainer.modules.catalogue_draws import drawn_items, drawn_rows
from trainer.modules.user_to_token import bucket_means, distillation_loss, prefix_means


@pytest.mark.parametrize("scope", ["user", "batch"])
def test_bucket_means_equal_eq_13(scope):
    torch.manual_seed(0)
    cross = torch.randn(40, 3)
    codes = torch.randint(0, 4, (40, 2))
    users = torch.randint(100, 103, (40,))
    found = bucket_means(cross, codes, users, num_codes=4, scope=scope)
    for level in range(2):
        groups = set()
        for row in range(40):
            members = [
                other
                for other in range(40)
                if codes[other, level] == codes[row, level]
                and (scope == "batch" or users[other] == users[row])
            ]
            groups.add(tuple(members))
            torch.testing.assert_close(found.u2t_BLC[row, level], cross[members].mean(0))
        assert found.group_size_L[level] == pytest.approx(40 / len(groups))


def test_prefix_means_keep_the_width():
    u2t = torch.randn(5, 3, 2)
    for level in range(3):
        torch.testing.assert_close(prefix_means(u2t)[:, level], u2t[:, : level + 1].mean(1))


def test_distillation_equals_eq_15_and_leaves_its_teacher_alone():
    predicted = torch.randn(4, 3, 2, requires_grad=True)
    teacher = torch.randn(4, 3, 2, requires_grad=True)
    loss = distillation_loss(predicted, teacher)
    expected = np.mean(
        [
            sum(
                np.square((predicted[b, level] - teacher[b, level]).detach().numpy()).sum()
                for level in range(3)
            )
            / 3
            for b in range(4)
        ]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert predicted.grad.abs().sum() > 0
    assert teacher.grad is None


def test_drawn_items_are_even_and_depend_on_row_and_step_alone():
    rows = torch.arange(50_000)
    drawn = drawn_items(rows, step=torch.tensor([7]), number=2, num_items=50)
    counts = torch.bincount(drawn.flatten(), minlength=50)
    assert counts.min() > 1700
    assert counts.max() < 2300
    part = drawn_items(rows[100:200], step=torch.tensor([7]), number=2, num_items=50)
    assert torch.equal(part, drawn[100:200])
    later = drawn_items(rows, step=torch.tensor([8]), number=2, num_items=50)
    assert (later == drawn).float().mean() < 0.05


def test_drawn_rows_are_a_share_that_grows():
    rows = torch.arange(50_000)
    few, more = (drawn_rows(rows, share=share) for share in (0.25, 0.5))
    assert few.float().mean() == pytest.approx(0.25, abs=0.01)
    assert more.float().mean() == pytest.approx(0.5, abs=0.01)
    assert not (few & ~more).any()
    assert torch.equal(drawn_rows(rows[90:99], share=0.5), more[90:99])
    assert not drawn_rows(rows, share=0.0).any()
