import math

import pytest
import torch

from trainer.models.gdcn import GDCNConfig

FEATURES = {"user": 3, "candidate": 2}


def naive_gdcn(tower, x_BF):
    """Row by row, value by value: x_0 * (W_c x + b) * sigmoid(W_g x) + x."""
    *crosses, deep = tower.blocks
    out = []
    for first in x_BF.tolist():
        x = first
        for layer in crosses:
            cross, gate = layer.cross.weight.tolist(), layer.gate.weight.tolist()
            bias = layer.cross.bias.tolist()
            x = [
                first[i]
                * (sum(cross[i][j] * x[j] for j in range(5)) + bias[i])
                / (1 + math.exp(-sum(gate[i][j] * x[j] for j in range(5))))
                + x[i]
                for i in range(5)
            ]
        stacked = tower.config.structure == "stacked"
        hidden = torch.tensor(x if stacked else first, dtype=torch.float64)
        for layer in deep:
            if isinstance(layer, torch.nn.Linear):
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
        crossed = torch.tensor(x, dtype=torch.float64)
        out.append(hidden if stacked else torch.cat([crossed, hidden]))
    return torch.stack(out)


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_equals_the_equations(structure):
    torch.manual_seed(0)
    config = GDCNConfig(num_layers=3, hidden_dims=(6, 4), structure=structure)
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tower(x_BF), naive_gdcn(tower, x_BF))


@pytest.mark.parametrize("wrong", [{"num_layers": 0}, {"hidden_dims": ()}])
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="GDCN"):
        GDCNConfig(**({"num_layers": 1, "hidden_dims": (4,)} | wrong))
