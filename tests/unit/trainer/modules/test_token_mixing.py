import math

import pytest
import torch

from trainer.modules.token_mixing import PerTokenFFN, RankMixerBlock, mix_tokens


def naive_mix(x_BTD):
    """New token h is head h of token 0, head h of token 1, ... side by side."""
    out = torch.empty_like(x_BTD)
    num_rows, num_tokens, dim = x_BTD.shape
    head = dim // num_tokens
    for row in range(num_rows):
        for new in range(num_tokens):
            for old in range(num_tokens):
                for at in range(head):
                    out[row, new, old * head + at] = x_BTD[row, old, new * head + at]
    return out


def naive_ffn(ffn, x_BTD):
    out = torch.empty_like(x_BTD)
    for row in range(x_BTD.shape[0]):
        for token in range(x_BTD.shape[1]):
            hidden = x_BTD[row, token] @ ffn.weight_in_TDK[token] + ffn.bias_in_TK[token]
            hidden = torch.stack([h * 0.5 * (1 + math.erf(h / math.sqrt(2))) for h in hidden])
            out[row, token] = hidden @ ffn.weight_out_TKD[token] + ffn.bias_out_TD[token]
    return out


def naive_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = RankMixerBlock(6, PerTokenFFN(num_tokens=3, dim=6, hidden_dim=5)).double()
    for norm in (block.mixing_norm, block.ffn_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return block


def test_mixing_equals_loops_and_undoes_itself():
    x_BTD = torch.randn(4, 3, 6)
    torch.testing.assert_close(mix_tokens(x_BTD), naive_mix(x_BTD), atol=0, rtol=0)
    torch.testing.assert_close(mix_tokens(mix_tokens(x_BTD)), x_BTD, atol=0, rtol=0)


def test_mixing_is_no_identity():
    x_BTD = torch.randn(2, 3, 6)
    assert not torch.equal(mix_tokens(x_BTD), x_BTD)


def test_per_token_ffn_equals_a_loop_over_tokens(block):
    x_BTD = torch.randn(4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block.ffn(x_BTD), naive_ffn(block.ffn, x_BTD))


def test_per_token_ffn_shares_nothing_between_tokens():
    torch.manual_seed(0)
    ffn = PerTokenFFN(num_tokens=3, dim=4, hidden_dim=5)
    x_BTD = torch.randn(2, 3, 4)
    changed = x_BTD.clone()
    changed[:, 1] += 1
    difference = (ffn(changed) - ffn(x_BTD)).abs().sum((0, 2))
    assert difference[1] > 0
    assert difference[0] == difference[2] == 0
    same_input = ffn(torch.ones(1, 3, 4))[0]
    assert not torch.allclose(same_input[0], same_input[1])


def test_initial_weights_stay_in_the_bounds_of_a_linear_layer():
    ffn = PerTokenFFN(num_tokens=2, dim=16, hidden_dim=64)
    for weight, fan_in in ((ffn.weight_in_TDK, 16), (ffn.weight_out_TKD, 64)):
        assert weight.abs().max() <= fan_in**-0.5
        assert weight.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.1)


def test_block_equals_mixing_and_networks_with_residual_and_norm(block):
    x_BTD = torch.randn(4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        mixed = naive_norm(naive_mix(x_BTD) + x_BTD, block.mixing_norm)
        expected = naive_norm(naive_ffn(block.ffn, mixed) + mixed, block.ffn_norm)
        torch.testing.assert_close(block(x_BTD), expected)
