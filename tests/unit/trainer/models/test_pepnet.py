import pytest
import torch

from trainer.models.pepnet import PEPNetConfig

FEATURES = {"user": 3, "candidate": 2, "page": 2}


def naive_gate(gate, values):
    first, _, second = gate.layers
    hidden = (first.weight @ values + first.bias).clamp(min=0)
    return 2 / (1 + torch.exp(-(second.weight @ hidden + second.bias)))


@pytest.mark.parametrize("domain", [(), ("page",)])
def test_equals_the_equations(domain):
    torch.manual_seed(0)
    config = PEPNetConfig(
        hidden_dims=(6, 4),
        gate_dim=5,
        prior_features=("user", "candidate"),
        domain_features=domain,
    )
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(4, 7, dtype=torch.float64)
    expected = []
    for row in x_BF:
        hidden = row
        if domain:
            hidden = naive_gate(tower.embedding_gate, torch.cat([row[5:], row])) * row
        prior = torch.cat([row[:5], hidden])
        for layer in tower.blocks:
            hidden = naive_gate(layer.gate, prior) * hidden
            hidden = (layer.linear.weight @ hidden + layer.linear.bias).clamp(min=0)
        expected.append(hidden)
    torch.testing.assert_close(tower(x_BF), torch.stack(expected))


def test_gates_do_not_train_the_features_beside_their_own():
    """With linear layers switched off, only prior features have a gradient, through the gate."""
    config = PEPNetConfig(hidden_dims=(6,), gate_dim=5, prior_features=("user",))
    tower = config.build(FEATURES).double()
    x_BF = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    layer = tower.blocks[0]
    prior_BG = torch.cat([x_BF[:, :3], x_BF.detach()], dim=1)
    layer.gate(prior_BG).sum().backward()
    through_gate = x_BF.grad.clone()
    assert through_gate[:, :3].any()
    assert not through_gate[:, 3:].any()
    x_BF.grad = None
    torch.nn.init.zeros_(layer.gate.layers[2].weight)  # gates say 1, whatever they read
    torch.nn.init.zeros_(layer.gate.layers[2].bias)
    out = tower(x_BF)
    torch.testing.assert_close(out, torch.relu(layer.linear(x_BF)))


def test_features_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="prior_features names author, but the features are user"):
        PEPNetConfig(hidden_dims=(4,), prior_features=("author",)).build(FEATURES)
    with pytest.raises(ValueError, match="domain_features names scene"):
        PEPNetConfig(hidden_dims=(4,), prior_features=("user",), domain_features=("scene",)).build(
            FEATURES
        )


@pytest.mark.parametrize("wrong", [{"hidden_dims": ()}, {"prior_features": ()}, {"gate_dim": 0}])
def test_sizes_without_meaning_are_refused(wrong):
    with pytest.raises(ValueError, match="PEPNet"):
        PEPNetConfig(**({"hidden_dims": (4,)} | wrong))
