import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from trainer.models.dhen import DHENConfig

FEATURES = {"user": 9, "candidate": 5}
NAMES = ("cross", "attention", "linear", "dot")


def combine(weight_LT, x_TD):
    return torch.stack([sum(w * x for w, x in zip(row, x_TD, strict=True)) for row in weight_LT])


def linear(module, x):
    return module.weight @ x + (0 if module.bias is None else module.bias)


def norm(module, x):
    return layer_norm(x, x.shape[-1:], module.weight, module.bias)


def naive_attention(block, x_TD, heads):
    num_tokens, dim = x_TD.shape
    head = dim // heads
    qkv = [linear(block.query_key_value, norm(block.attention_norm, x)) for x in x_TD]
    attended = []
    for here in range(num_tokens):
        parts = []
        for h in range(heads):
            cut = slice(h * head, (h + 1) * head)
            scores = torch.stack(
                [qkv[here][:dim][cut] @ there[dim : 2 * dim][cut] for there in qkv]
            ) / math.sqrt(head)
            share = scores.exp() / scores.exp().sum()
            parts.append(
                sum(s * there[2 * dim :][cut] for s, there in zip(share, qkv, strict=True))
            )
        attended.append(x_TD[here] + linear(block.attention_out, torch.cat(parts)))
    return torch.stack(
        [
            x + linear(block.ffn_out, gelu(linear(block.ffn_in, norm(block.ffn_norm, x))))
            for x in attended
        ]
    )


def naive_interaction(name, module, x_TD, heads):
    num_tokens, dim = x_TD.shape
    if name == "linear":
        return combine(module.combine.weight, x_TD)
    if name == "attention":
        return combine(module.compress.combine.weight, naive_attention(module.block, x_TD, heads))
    if name == "cross":
        flat = x_TD.flatten()
        crossed = flat * linear(module.cross.linear, flat) + flat
        return combine(module.compress.combine.weight, crossed.view(num_tokens, dim))
    products = torch.stack(
        [x_TD[i] @ x_TD[j] for i in range(num_tokens) for j in range(i + 1, num_tokens)]
    )
    hidden = linear(module.mlp[0], products).clamp(min=0)
    return linear(module.mlp[2], hidden).view(-1, dim)


@pytest.mark.parametrize("ensemble", ["sum", "concat"])
@pytest.mark.parametrize("names", [NAMES, ("dot", "linear"), ("attention",)])
def test_equals_the_equations(ensemble, names):
    torch.manual_seed(0)
    config = DHENConfig(
        num_tokens=4,
        dim=6,
        num_layers=2,
        num_heads=3,
        interactions=names,
        ensemble=ensemble,
        dot_hidden_dim=5,
    )
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(3, 14, dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for x_TD in tower.tokenize(x_BF):
            for layer in tower.blocks:
                made = [
                    naive_interaction(name, layer.interactions[name], x_TD, 3) for name in names
                ]
                joined = sum(made) if ensemble == "sum" else torch.cat(made)
                x_TD = norm(layer.norm, joined + x_TD)
            expected.append(x_TD.flatten())
        torch.testing.assert_close(tower(x_BF), torch.stack(expected))


def test_modules_are_those_that_are_named():
    config = DHENConfig(num_tokens=4, dim=4, interactions=("linear", "dot"))
    assert list(config.build(FEATURES).blocks[0].interactions) == ["linear", "dot"]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"interactions": ()}, "interactions is"),
        ({"interactions": ("dot", "dot")}, "each once"),
        ({"ensemble": "concat", "interactions": ("dot", "linear", "cross")}, "can't share evenly"),
        ({"num_heads": 3}, r"dim \(4\) must be a multiple of num_heads \(3\)"),
    ],
)
def test_sizes_without_meaning_are_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        DHENConfig(**({"num_tokens": 4, "dim": 4} | wrong))
