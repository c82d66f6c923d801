import pytest
import torch
from torch.nn.functional import layer_norm

from trainer.models.wukong import WuKongConfig

FEATURES = {"user": 6, "candidate": 5}
CONFIG = WuKongConfig(
    num_tokens=4, dim=6, num_layers=3, num_fm_tokens=3, rank=2, hidden_dims=(7, 5)
)


def naive_layer(layer, x_TD, made):
    """LN([MLP(LN(flatten(X X^T Y))), W X] + X), with all inner products X X^T written down."""
    num_tokens, dim = x_TD.shape
    inner_TT = torch.tensor([[left @ right for right in x_TD] for left in x_TD])
    hidden = (inner_TT.to(x_TD) @ layer.project.weight.T).flatten()
    hidden = layer_norm(hidden, hidden.shape, layer.fm_norm.weight, layer.fm_norm.bias)
    linears = [module for module in layer.mlp if isinstance(module, torch.nn.Linear)]
    for linear in linears[:-1]:
        hidden = (linear.weight @ hidden + linear.bias).clamp(min=0)
    machine = (linears[-1].weight @ hidden + linears[-1].bias).view(made, dim)
    weight = layer.compress.combine.weight
    compressed = [
        sum(weight[out, token] * x_TD[token] for token in range(num_tokens))
        for out in range(num_tokens - made)
    ]
    joined = torch.cat([machine, torch.stack(compressed)]) + x_TD
    return layer_norm(joined, (dim,), layer.norm.weight, layer.norm.bias)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return CONFIG.build(FEATURES).double()


def test_equals_the_equations(tower):
    x_BF = torch.randn(3, 11, dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for x_TD in tower.tokenize(x_BF):
            for layer in tower.blocks:
                x_TD = naive_layer(layer, x_TD, CONFIG.num_fm_tokens)
            expected.append(x_TD.flatten())
        torch.testing.assert_close(tower(x_BF), torch.stack(expected))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"num_fm_tokens": 4}, "num_fm_tokens is 4"),
        ({"num_fm_tokens": 0}, "num_fm_tokens is 0"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_sizes_without_meaning_are_refused(wrong, named):
    sizes = {"num_tokens": 4, "dim": 6, "num_fm_tokens": 2, "rank": 2, "hidden_dims": (4,)}
    with pytest.raises(ValueError, match=named):
        WuKongConfig(**(sizes | wrong))
