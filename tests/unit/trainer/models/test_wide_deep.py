import torch

from trainer.models.wide_deep import WideDeepConfig


def test_equals_a_chain_of_layers_and_a_linear_one():
    torch.manual_seed(0)
    tower = WideDeepConfig(hidden_dims=(6, 5)).build({"user": 4, "dense": 3})
    x_BF = torch.randn(9, 7)
    deep = x_BF
    for layer in tower.blocks[0]:
        if isinstance(layer, torch.nn.Linear):
            deep = (deep @ layer.weight.T + layer.bias).clamp_min(0)
    wide = x_BF @ tower.wide.weight.T + tower.wide.bias
    torch.testing.assert_close(tower(x_BF), torch.cat([deep, wide], dim=1))
