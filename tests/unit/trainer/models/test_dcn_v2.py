import pytest
import torch

from trainer.models.dcn_v2 import DCNv2Config

FEATURES = {"user": 4, "candidate": 3}


def naive_dcn(tower, x_BF):
    """Row by row, layer by layer: x_0 * (W x + b) + x, with W = U V^T in low rank."""
    *crosses, deep = tower.blocks
    out = []
    for first in x_BF:
        x = first
        for cross in crosses:
            if tower.config.rank is None:
                weight, bias = cross.linear.weight, cross.linear.bias
            else:
                weight = cross.linear[1].weight @ cross.linear[0].weight
                bias = cross.linear[1].bias
            x = torch.stack(
                [
                    first[i] * (sum(weight[i, j] * x[j] for j in range(7)) + bias[i]) + x[i]
                    for i in range(7)
                ]
            )
        hidden = x if tower.config.structure == "stacked" else first
        for layer in deep:
            if isinstance(layer, torch.nn.Linear):
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
        out.append(hidden if tower.config.structure == "stacked" else torch.cat([x, hidden]))
    return torch.stack(out)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_equals_the_equations(rank, structure):
    torch.manual_seed(0)
    config = DCNv2Config(num_layers=3, hidden_dims=(5, 4), rank=rank, structure=structure)
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(3, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tower(x_BF), naive_dcn(tower, x_BF))


def test_crosses_reach_a_degree_of_layers_plus_one():
    """With x scaled by s, crosses without bias are a polynomial of degree 3 in s."""
    torch.manual_seed(0)
    tower = DCNv2Config(num_layers=2, hidden_dims=(4,)).build(FEATURES).double()
    for cross in tower.blocks[:-1]:
        torch.nn.init.zeros_(cross.linear.bias)
    x_1F = torch.randn(1, 7, dtype=torch.float64)
    scales = torch.arange(5, dtype=torch.float64)
    with torch.no_grad():
        values = tower(scales[:, None] * x_1F)[:, 0]
    differences = values
    degrees = []
    for _ in range(4):
        differences = differences.diff()
        degrees.append(differences.abs().max().item())
    assert degrees[2] > 1e-6
    assert degrees[3] == pytest.approx(0, abs=1e-9)


def test_low_rank_has_fewer_weights():
    full, low = (
        sum(
            weight.numel()
            for weight in DCNv2Config(num_layers=1, hidden_dims=(2,), rank=rank)
            .build({"a": 64})
            .parameters()
        )
        for rank in (None, 4)
    )
    assert full - low == 64 * 64 - 2 * 64 * 4


@pytest.mark.parametrize(
    "wrong",
    [{"num_layers": 0}, {"hidden_dims": ()}, {"rank": 0}],
)
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="DCN-v2"):
        DCNv2Config(**({"num_layers": 1, "hidden_dims": (4,)} | wrong))
