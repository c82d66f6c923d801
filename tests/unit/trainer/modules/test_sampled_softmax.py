import pytest
import torch

from trainer.modules.sampled_softmax import sampled_cross_entropy


def test_sampled_softmax_estimates_the_exact_denominator():
    torch.manual_seed(4)
    hidden, codes = torch.randn(2, 6, 5), torch.randint(40, (2, 6))
    weight, bias = torch.randn(2, 40, 5), torch.randn(2, 40)
    exact = torch.tensor(0.0)
    for level in range(2):
        for row in range(6):
            logits = weight[level] @ hidden[level, row] + bias[level]
            exact = exact - logits.log_softmax(0)[codes[level, row]]

    def sampled(number):
        return sampled_cross_entropy(hidden, codes, weight, bias, num_sampled=number)

    many = sampled(200_000)
    assert float(many) == pytest.approx(float(exact), rel=0.01)
    means = [torch.stack([sampled(n) for _ in range(300)]).mean() for n in (4, 64)]
    errors = [abs(float(mean - exact)) for mean in means]
    assert errors[1] < 0.25 * errors[0], "more samples, less bias"
    assert errors[1] < 0.05 * float(exact)


def test_gradient_of_the_sampled_softmax_approaches_the_exact_one():
    torch.manual_seed(5)
    hidden, codes = torch.randn(2, 6, 5, requires_grad=True), torch.randint(40, (2, 6))
    weight, bias = torch.randn(2, 40, 5), torch.randn(2, 40)
    logits = torch.einsum("lpd,lkd->lpk", hidden, weight) + bias.unsqueeze(1)
    exact = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), codes.flatten(), reduction="sum"
    )
    (expected,) = torch.autograd.grad(exact, hidden)
    loss = sampled_cross_entropy(hidden, codes, weight, bias, num_sampled=100_000)
    (found,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(found, expected, atol=0.06, rtol=0.05)
