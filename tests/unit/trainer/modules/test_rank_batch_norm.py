import torch
from torch import nn

from trainer.modules.rank_batch_norm import RankBatchNorm


def test_equals_torch_in_training_and_evaluation():
    torch.manual_seed(0)
    ours, theirs = RankBatchNorm(5), nn.BatchNorm1d(5)
    for _ in range(3):
        x = torch.randn(7, 4, 5) * 3 + 2
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight = torch.randn(7, 4, 5)
        (ours(a) * weight).sum().backward()
        (theirs(b.flatten(0, 1)).view_as(b) * weight).sum().backward()
        torch.testing.assert_close(ours(a), theirs(b.flatten(0, 1)).view_as(b))
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.running_mean_D, theirs.running_mean)
    torch.testing.assert_close(ours.running_var_D, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))


def test_small_variance_on_a_large_mean():
    x = 1e4 + torch.arange(8.0).unsqueeze(1)
    out = RankBatchNorm(1)(x)
    torch.testing.assert_close(out.std(unbiased=False), torch.tensor(1.0), atol=1e-3, rtol=0)
