import pytest
import torch
from torch import nn

from trainer.initialize import initialize, parameters_on_meta
from trainer.models.dcn_v2 import DCNv2Config
from trainer.models.dhen import DHENConfig
from trainer.models.dlrm import DLRMConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.rankmixer_moe import RankMixerMoEConfig
from trainer.models.transformer import TransformerConfig
from trainer.models.wukong import WuKongConfig
from trainer.modules.dense_encoding import PiecewiseLinearEncoding

CPU = torch.device("cpu")
FEATURES = {f"feature_{number}": 32 for number in range(8)}
TOWERS = {
    "dlrm": DLRMConfig(hidden_dims=(64, 32)),
    "dcn_v2": DCNv2Config(num_layers=2, hidden_dims=(64,), rank=8),
    "dhen": DHENConfig(num_tokens=4, dim=32),
    "wukong": WuKongConfig(num_tokens=4, dim=32, num_fm_tokens=2, rank=2, hidden_dims=(32,)),
    "transformer": TransformerConfig(num_tokens=4, dim=32, weights="per_token"),
    "rankmixer": RankMixerConfig(num_tokens=4, dim=32),
    "rankmixer_moe": RankMixerMoEConfig(num_tokens=4, dim=32),
}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.norm = nn.LayerNorm(4)
        self.encoding = PiecewiseLinearEncoding(num_features=2, num_bins=3)
        self.second = nn.Linear(6, 4)


def drawn(build, seed=5):
    with parameters_on_meta():
        network = build()
    initialize(network, seed=seed, device=CPU)
    return network


def test_parameters_have_no_memory_and_buffers_are_real():
    with parameters_on_meta():
        network = Network()
    assert all(weight.is_meta for weight in network.parameters())
    assert network.encoding.edges_FE.tolist() == [pytest.approx([0, 1 / 3, 2 / 3, 1])] * 2
    assert not nn.Linear(2, 2).weight.is_meta


def test_draws_depend_on_seed_and_path_alone():
    torch.manual_seed(0)
    one = drawn(Network).state_dict()
    torch.manual_seed(1)
    again, other = drawn(Network).state_dict(), drawn(Network, seed=6).state_dict()
    for name, weight in one.items():
        assert torch.equal(weight, again[name])
    assert not torch.equal(one["first.weight"], other["first.weight"])
    assert not torch.equal(one["first.weight"], one["second.weight"])
    # The same layer under the same path, in a network with other layers around it.
    alone = nn.ModuleDict({"second": nn.Linear(6, 4)})
    with parameters_on_meta():
        alone = nn.ModuleDict({"zeroth": nn.Linear(2, 2), "second": nn.Linear(6, 4)})
    initialize(alone, seed=5, device=CPU)
    assert torch.equal(alone["second"].weight, one["second.weight"])


def test_random_state_outside_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn(Network)
    assert torch.equal(torch.rand(3), expected)


def test_weights_with_memory_keep_their_values():
    with parameters_on_meta():
        network = Network()
    network.first = nn.Linear(6, 4)
    before = network.first.weight.detach().clone()
    network.encoding.edges_FE.fill_(7.0)
    initialize(network, seed=5, device=CPU)
    assert torch.equal(network.first.weight, before)
    assert bool((network.encoding.edges_FE == 7.0).all())
    assert bool((network.norm.weight == 1).all())
    assert float(network.second.weight.abs().max()) > 0


@pytest.mark.parametrize("name", TOWERS)
def test_towers_are_drawn_as_their_constructors_draw(name):
    plain = TOWERS[name].build(FEATURES)
    network = drawn(lambda: TOWERS[name].build(FEATURES))
    found = dict(network.named_parameters())
    assert found.keys() == dict(plain.named_parameters()).keys()
    for path, expected in plain.named_parameters():
        weight = found[path]
        assert weight.shape == expected.shape
        if expected.unique().numel() == 1:
            assert torch.equal(weight, expected), path
            continue
        assert not torch.equal(weight, expected), path
        deviation = float(expected.std())
        close = 6 / expected.numel() ** 0.5  # six standard errors
        assert float(weight.std()) == pytest.approx(deviation, rel=close), path
        assert abs(float(weight.mean() - expected.mean())) < 2**0.5 * close * deviation, path


class Outer(nn.Module):
    """Changes what the layer inside drew."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.empty(3))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.inner.bias)


def test_a_module_around_others_draws_after_them():
    network = drawn(Outer)
    assert bool((network.inner.bias == 0).all())
    assert float(network.inner.weight.abs().max()) > 0


class Nobody(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class Half(Nobody):
    def reset_parameters(self):
        with torch.no_grad():
            self.scale[:2] = 1


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Nobody, r"Nobody: no module with reset_parameters\(\) draws scale"),
        (Half, "scale: reset_parameters.. of Half .* leaves it without a value"),
        (Shared, "two modules share a parameter"),
    ],
)
def test_weights_that_nothing_would_draw_are_refused(build, message):
    with pytest.raises(TypeError, match=message):
        drawn(build)
