import pytest
import torch

from sharding.tables import TableSpec
from trainer.optim import DenseOptimizer, OptimConfig, table_optimizer_arguments


def naive_factor(config, step, num_steps):
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    share = (step - config.warmup_steps) / (num_steps - config.warmup_steps)
    return (1 - share) * 1.0 + share * config.final_fraction


@pytest.mark.parametrize("decay", ["constant", "linear"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_schedule_equals_its_definition(decay, warmup):
    config = OptimConfig(warmup_steps=warmup, decay=decay, final_fraction=0.2)
    found = [config.factor(step, 20) for step in range(20)]
    assert found == pytest.approx([naive_factor(config, step, 20) for step in range(20)])


def test_schedule_rises_to_one_and_falls_to_its_final_fraction():
    config = OptimConfig(warmup_steps=4, decay="linear", final_fraction=0.2)
    factors = [config.factor(step, 20) for step in range(30)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[4:21] == sorted(set(factors[4:21]), reverse=True)
    assert factors[20] == pytest.approx(0.2)
    assert factors[29] == pytest.approx(0.2)


def test_warmup_as_long_as_the_run_divides_by_nothing():
    config = OptimConfig(warmup_steps=5, decay="linear")
    assert config.factor(5, 5) == 1.0
    assert config.factor(4, 3) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "cosine"}, "optim.decay is 'cosine', expected 'constant' or 'linear'"),
        ({"dense_lr": 0.0}, "optim.dense_lr is 0.0, expected above 0"),
        ({"sparse_lr": -1.0}, "optim.sparse_lr is -1.0, expected above 0"),
        ({"max_dense_norm": 0.0}, "optim.max_dense_norm is 0.0, expected above 0, or None"),
        ({"max_sparse_gradient": -1.0}, "optim.max_sparse_gradient is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimConfig(**changes)


def test_kernel_clips_only_when_asked():
    assert OptimConfig().fused_params() == {}
    clipped = OptimConfig(max_sparse_gradient=0.5).fused_params()
    assert clipped == {"gradient_clipping": True, "max_gradient": 0.5}


def test_arguments_of_a_tables_optimizer():
    config = OptimConfig(sparse_lr=0.3, sparse_eps=1e-5)
    table = {"name": "t", "rows": 4, "dim": 4, "features": ("f",), "role": "side"}
    adagrad = TableSpec(optimizer="adagrad", **table)
    assert table_optimizer_arguments(adagrad, config) == {"lr": 0.3, "eps": 1e-5}
    assert table_optimizer_arguments(TableSpec(optimizer="sgd", **table), config) == {"lr": 0.3}


class RecordedFused(torch.optim.SGD):
    """Stands for the optimizer inside the TBE kernels: notes the rate at zero_grad."""

    def __init__(self):
        super().__init__([torch.nn.Parameter(torch.zeros(1))], lr=99.0)
        self.rates = []

    def zero_grad(self, set_to_none=True):
        self.rates.append(self.param_groups[0]["lr"])
        super().zero_grad(set_to_none)


def optimizer_of(network, table_weight, config, num_steps=10):
    spec = TableSpec(
        name="t", rows=3, dim=4, features=("f",), role="side", optimizer="rowwise_adagrad"
    )
    fused = RecordedFused()
    optimizer = DenseOptimizer(
        network, {"t": table_weight}, fused, tables=[spec], config=config, num_steps=num_steps
    )
    return optimizer, fused


def test_steps_equal_clipped_adamw_and_rowwise_adagrad_on_one_schedule():
    torch.manual_seed(0)
    config = OptimConfig(
        dense_lr=0.01,
        weight_decay=0.1,
        sparse_lr=0.5,
        sparse_eps=1e-3,
        warmup_steps=3,
        max_dense_norm=0.05,
    )
    network, twin = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    twin.load_state_dict(network.state_dict())
    table = torch.nn.Parameter(torch.randn(3, 4))
    expected_table, sums = table.detach().clone(), torch.zeros(3, 1)
    optimizer, fused = optimizer_of(network, table, config)
    adam = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(6):
        x = torch.randn(5, 4)
        optimizer.zero_grad()
        (network(x).square().mean() + (table * x[:3]).square().sum()).backward()
        gradient = 2 * expected_table * x[:3] ** 2
        optimizer.step()
        adam.zero_grad()
        twin(x).square().mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
        assert optimizer.gradient_norm == pytest.approx(float(norm))
        assert norm > 0.05
        factor = min(1.0, (step + 1) / 3)
        adam.param_groups[0]["lr"] = 0.01 * factor
        adam.step()
        sums += gradient.square().mean(1, keepdim=True)
        expected_table -= 0.5 * factor * gradient / (sums.sqrt() + 1e-3)
        torch.testing.assert_close(network.weight, twin.weight)
        torch.testing.assert_close(table.detach(), expected_table)
    assert fused.rates == pytest.approx([0.5 / 3, 1 / 3, 0.5, 0.5, 0.5, 0.5])


def test_without_limit_nothing_is_clipped():
    network = torch.nn.Linear(4, 2)
    config = OptimConfig(max_dense_norm=None)
    optimizer, _ = optimizer_of(network, torch.nn.Parameter(torch.zeros(3, 4)), config)
    optimizer.zero_grad()
    (network(torch.ones(1, 4)) * 1e6).sum().backward()
    optimizer.step()
    assert network.weight.grad.abs().max() == 1e6


def test_zero_grad_drops_gradients_of_network_and_tables():
    network, table = torch.nn.Linear(4, 2), torch.nn.Parameter(torch.ones(3, 4))
    optimizer, _ = optimizer_of(network, table, OptimConfig())
    (network(torch.ones(1, 4)).sum() + table.sum()).backward()
    optimizer.zero_grad()
    assert table.grad is None
    assert network.weight.grad is None


def test_parts_learn_in_turn():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2)
    twins = {"weight": network.weight.detach().clone(), "bias": network.bias.detach().clone()}
    adams = {
        name: torch.optim.AdamW([torch.nn.Parameter(value)], lr=0.1, weight_decay=0.5)
        for name, value in twins.items()
    }
    config = OptimConfig(dense_lr=0.1, weight_decay=0.5, max_dense_norm=None)

    def waiting(step):
        return [network.weight if step % 3 == 2 else network.bias]

    optimizer = DenseOptimizer(
        network, {}, RecordedFused(), tables=[], config=config, num_steps=9, waiting=waiting
    )
    for step in range(9):
        optimizer.zero_grad()
        network(torch.randn(5, 4)).square().mean().backward()
        learns = "bias" if step % 3 == 2 else "weight"
        adam = adams[learns]
        twin = adam.param_groups[0]["params"][0]
        twin.grad = getattr(network, learns).grad.clone()
        optimizer.step()
        adam.step()
        for name, other in adams.items():
            torch.testing.assert_close(getattr(network, name), other.param_groups[0]["params"][0])
