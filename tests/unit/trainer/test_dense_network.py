import copy

import pytest
import torch
from torch.distributed.tensor import Shard

from trainer.dense_network import (
    compile_training,
    even_shard,
    prepare_network,
    sharded_bytes,
)
from trainer.distributed import Ranks
from trainer.models.dlrm import DLRMConfig
from trainer.models.rankmixer import RankMixerConfig

ALONE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


class Network(torch.nn.Module):
    """A tower with what `prepare_network` asks of the ranking network."""

    def __init__(self, config, in_dim):
        super().__init__()
        self.tower = config.build({"all": in_dim})

    def fsdp_units(self):
        return list(self.tower.blocks)

    def forward(self, x):
        return self.tower(x)


TOWERS = {
    "with_dropout": DLRMConfig(hidden_dims=(16, 8), dropout=0.5),
    "rankmixer": RankMixerConfig(num_tokens=4, dim=8),
}


def gradients(network):
    """After two steps with one random state."""
    torch.manual_seed(3)
    for _ in range(2):
        x = torch.randn(6, 12, requires_grad=True)
        network(x).square().sum().backward()
    return [x.grad, *(weight.grad for weight in network.parameters())]


@pytest.mark.parametrize("name", TOWERS)
def test_activation_checkpointing_changes_no_bit_and_keeps_less(name):
    plain = Network(TOWERS[name], 12)
    network = copy.deepcopy(plain)
    prepare_network(network, ALONE, sharded=False, seed=0, activation_checkpointing=True)
    for found, expected in zip(gradients(network), gradients(plain), strict=True):
        assert torch.equal(found, expected)
    assert kept_bytes(network) < kept_bytes(plain)


def kept_bytes(network):
    """Of what autograd keeps from a forward pass, in all distinct tensors."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(6, 12, requires_grad=True))
    return sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_compiled_training_equals_eager_with_its_dropout(name):
    plain = Network(TOWERS[name], 12)
    network = copy.deepcopy(plain)
    prepare_network(network, ALONE, sharded=False, seed=0, compiled=True)
    for found, expected in zip(gradients(network), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_evaluation_of_a_compiled_module_is_eager():
    module = torch.nn.Linear(3, 2)
    eager_calls = []
    eager = module.forward

    def counted(x):
        eager_calls.append(torch.compiler.is_compiling())
        return eager(x)

    module.forward = counted
    compile_training(module)
    module.eval()
    module(torch.ones(4, 3))
    assert eager_calls == [False]


def test_shards_are_even_where_some_dim_allows_it():
    assert even_shard(torch.empty(6, 4), 2) == Shard(0)
    assert even_shard(torch.empty(6, 8, 4), 4) == Shard(1)
    assert even_shard(torch.empty(5), 2) is None


def test_memory_of_a_sharded_network_falls_with_ranks_to_what_is_gathered():
    network = Network(RankMixerConfig(num_tokens=4, dim=64, num_layers=8), 64)
    whole = sum(weight.nbytes for weight in network.parameters())
    block = sum(weight.nbytes for weight in network.tower.blocks[0].parameters())
    assert sharded_bytes(network, 1) == 4 * whole + 4 * block
    assert sharded_bytes(network, 8) == 4 * whole // 8 + 4 * block
