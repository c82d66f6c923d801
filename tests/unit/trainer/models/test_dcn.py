import pytest
import torch

from trainer.initialize import initialize, parameters_on_meta
from trainer.models.dcn import DCNConfig

FEATURES = {"user": 4, "candidate": 3}


def test_equals_the_equations():
    """Row by row: x_0 (x . w) + b + x, and a chain of layers beside it."""
    torch.manual_seed(0)
    tower = DCNConfig(num_layers=3, hidden_dims=(5, 4)).build(FEATURES).double()
    cross, deep = tower.blocks
    for bias in cross.layers.bias:
        torch.nn.init.normal_(bias)
    expected = []
    x_BF = torch.randn(3, 7, dtype=torch.float64)
    for first in x_BF:
        x = first
        for weight, bias in zip(cross.layers.kernels, cross.layers.bias, strict=True):
            x = first * torch.dot(x, weight[:, 0]) + bias[:, 0] + x
        hidden = first
        for layer in deep:
            if isinstance(layer, torch.nn.Linear):
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
        expected.append(torch.cat([x, hidden]))
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))


def test_torchrecs_layers_can_be_drawn_later():
    with parameters_on_meta():
        tower = DCNConfig(num_layers=2, hidden_dims=(5,)).build(FEATURES)
    initialize(tower, seed=0, device=torch.device("cpu"))
    kernels = torch.cat([kernel.flatten() for kernel in tower.blocks[0].layers.kernels])
    assert kernels.isfinite().all()
    assert kernels.unique().numel() == 14
    assert all(not bias.any() for bias in tower.blocks[0].layers.bias)


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"hidden_dims": ()}])
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="DCN"):
        DCNConfig(**({"num_layers": 1, "hidden_dims": (4,)} | wrong))
