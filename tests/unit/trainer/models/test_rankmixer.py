import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from trainer.models.rankmixer import RankMixerConfig

FEATURES = {"user": 5, "candidate": 4, "dense": 2}  # 11 values for 4 tokens: the last is padded


def naive_rankmixer(tower, x_BF):
    """RankMixer row by row and token by token, from the tower's weights."""
    num_tokens, dim = tower.config.num_tokens, tower.config.dim
    part = -(-x_BF.shape[1] // num_tokens)
    out = []
    for row in x_BF:
        tokens = []
        for token in range(num_tokens):
            values = row[token * part : (token + 1) * part]
            values = torch.cat([values, values.new_zeros(part - len(values))])
            linear = tower.tokenize.project
            tokens.append(values @ linear.weight_TIO[token] + linear.bias_TO[token])
        for block in tower.blocks:
            head = dim // num_tokens
            mixed = [
                torch.cat([token[h * head : (h + 1) * head] for token in tokens])
                for h in range(num_tokens)
            ]
            norm = block.mixing_norm
            tokens = [
                layer_norm(new + old, (dim,), norm.weight, norm.bias)
                for new, old in zip(mixed, tokens, strict=True)
            ]
            ffn, norm = block.ffn, block.ffn_norm
            tokens = [
                layer_norm(
                    gelu(token @ ffn.weight_in_TDK[t] + ffn.bias_in_TK[t]) @ ffn.weight_out_TKD[t]
                    + ffn.bias_out_TD[t]
                    + token,
                    (dim,),
                    norm.weight,
                    norm.bias,
                )
                for t, token in enumerate(tokens)
            ]
        out.append(sum(tokens) / num_tokens)
    return torch.stack(out)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return RankMixerConfig(num_tokens=4, dim=8, num_layers=3, expansion=1.5).build(FEATURES)


def test_equals_the_definition_token_by_token(tower):
    tower = tower.double()
    x_BF = torch.randn(5, 11, dtype=torch.float64)
    torch.testing.assert_close(tower(x_BF), naive_rankmixer(tower, x_BF))
    assert tower(x_BF).shape == (5, tower.out_dim) == (5, 8)


def test_every_input_and_every_weight_gets_a_gradient(tower):
    x_BF = torch.randn(6, 11, requires_grad=True)
    tower(x_BF)[:, 0].sum().backward()
    assert (x_BF.grad != 0).all()
    for name, weight in tower.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_hidden_width_follows_expansion(tower):
    assert tower.blocks[0].ffn.weight_in_TDK.shape == (4, 8, 12)
    assert len(tower.blocks) == 3


def test_more_tokens_than_whole_parts_is_still_cut_for_every_token():
    tower = RankMixerConfig(num_tokens=8, dim=8, num_layers=1).build({"a": 9})
    assert tower(torch.randn(2, 9)).shape == (2, 8)


def test_dim_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"dim \(10\) must be a multiple of num_tokens \(4\)"):
        RankMixerConfig(num_tokens=4, dim=10)
