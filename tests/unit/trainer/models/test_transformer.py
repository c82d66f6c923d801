import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm
from torch.utils.flop_counter import FlopCounterMode

from trainer.models.transformer import TransformerConfig
from trainer.modules.transformer_block import TransformerBlock

FEATURES = {"user": 9, "candidate": 5}


def apply(module, token, x):
    """Token's own layer, or the one that all share."""
    if isinstance(module, torch.nn.Linear):
        return module.weight @ x + (0 if module.bias is None else module.bias)
    return x @ module.weight_TIO[token] + module.bias_TO[token]


def norm(module, x):
    return layer_norm(x, x.shape[-1:], module.weight, module.bias)


def naive_block(block, x_TD, heads, visible=lambda here, there: True):
    num_tokens, dim = x_TD.shape
    head = dim // heads
    qkv = [
        apply(block.query_key_value, t, norm(block.attention_norm, x)) for t, x in enumerate(x_TD)
    ]
    out = []
    for here in range(num_tokens):
        seen = [qkv[there] for there in range(num_tokens) if visible(here, there)]
        parts = []
        for h in range(heads):
            cut = slice(h * head, (h + 1) * head)
            query = qkv[here][:dim][cut]
            scores = torch.stack([query @ other[dim : 2 * dim][cut] for other in seen])
            share = torch.softmax(scores / math.sqrt(head), 0)
            parts.append(sum(s * v[2 * dim :][cut] for s, v in zip(share, seen, strict=True)))
        x = x_TD[here] + apply(block.attention_out, here, torch.cat(parts))
        hidden = gelu(apply(block.ffn_in, here, norm(block.ffn_norm, x)))
        out.append(x + apply(block.ffn_out, here, hidden))
    return torch.stack(out)


@pytest.mark.parametrize("weights", ["shared", "per_token"])
def test_equals_the_equations(weights):
    torch.manual_seed(0)
    config = TransformerConfig(
        num_tokens=4, dim=6, num_layers=2, num_heads=3, expansion=1.5, weights=weights
    )
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(3, 14, dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for x_TD in tower.tokenize(x_BF):
            for block in tower.blocks:
                x_TD = naive_block(block, x_TD, 3)
            expected.append(norm(tower.norm, x_TD).mean(0))
        torch.testing.assert_close(tower(x_BF), torch.stack(expected))


def test_mask_says_which_tokens_are_seen():
    torch.manual_seed(0)
    block = TransformerBlock(dim=6, num_heads=2, hidden_dim=5).double()
    x_BTD = torch.randn(2, 4, 6, dtype=torch.float64)
    mask_TT = torch.ones(4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        expected = [naive_block(block, x, 2, lambda here, there: there <= here) for x in x_BTD]
        torch.testing.assert_close(block(x_BTD, mask_TT), torch.stack(expected))


@pytest.mark.parametrize("weights", ["shared", "per_token"])
def test_flops_of_attention_are_counted(weights):
    rows, tokens, dim, features = 64, 16, 32, 128
    config = TransformerConfig(num_tokens=tokens, dim=dim, num_layers=2, weights=weights)
    with torch.device("meta"):
        tower = config.build({"features": features})
        x_BF = torch.empty(rows, features, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        tower(x_BF).sum().backward()
    layer = tokens * 12 * dim**2 + 2 * tokens**2 * dim
    assert counter.get_total_flops() == 6 * rows * (features * dim + 2 * layer)


def test_weights_per_token_cost_parameters():
    shared, own = (
        TransformerConfig(num_tokens=4, dim=8, num_layers=1, weights=weights).build(FEATURES)
        for weights in ("shared", "per_token")
    )
    count = [sum(weight.numel() for weight in tower.blocks.parameters()) for tower in (shared, own)]
    matrices, biases, qkv_bias = 3 * 8 * 8 + 8 * 8 + 2 * 8 * 32, 8 + 32 + 8, 3 * 8
    assert count[1] - count[0] == 3 * (matrices + biases) + 4 * qkv_bias


def test_dim_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"dim \(10\) must be a multiple of num_heads \(4\)"):
        TransformerConfig(num_tokens=4, dim=10)
