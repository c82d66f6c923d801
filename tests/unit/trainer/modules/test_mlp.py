import torch
from torch import nn

from trainer.modules.mlp import mlp


def kinds(module):
    return [type(layer).__name__ for layer in module]


def test_hidden_layers_have_activations_and_the_last_has_none():
    assert kinds(mlp(3, (4, 5), 2)) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert kinds(mlp(3, (4,))) == ["Linear", "ReLU"]
    assert kinds(mlp(3, (4,), 1, dropout=0.1)) == ["Linear", "ReLU", "Dropout", "Linear"]
    assert kinds(mlp(3, (), 2)) == ["Linear"]


def test_widths_follow_each_other():
    linears = [layer for layer in mlp(3, (4, 5), 2) if isinstance(layer, nn.Linear)]
    assert [(one.in_features, one.out_features) for one in linears] == [(3, 4), (4, 5), (5, 2)]


def test_nothing_at_all_passes_through():
    x = torch.randn(2, 3)
    assert torch.equal(mlp(3, ())(x), x)
