import torch

from trainer.models.dlrm import DLRMConfig


def test_equals_a_chain_of_products_and_rectifiers():
    torch.manual_seed(0)
    tower = DLRMConfig(hidden_dims=(6, 5, 4)).build({"user": 4, "dense": 3})
    x_BF = torch.randn(9, 7)
    expected = x_BF
    for layer in tower.blocks[0]:
        if isinstance(layer, torch.nn.Linear):
            expected = (expected @ layer.weight.T + layer.bias).clamp_min(0)
    torch.testing.assert_close(tower(x_BF), expected)
    assert tower(x_BF).shape == (9, tower.out_dim) == (9, 4)


def test_dropout_acts_while_training_only():
    torch.manual_seed(0)
    tower = DLRMConfig(hidden_dims=(64,), dropout=0.5).build({"dense": 8})
    x_BF = torch.randn(4, 8)
    assert not torch.equal(tower(x_BF), tower(x_BF))
    tower.eval()
    assert torch.equal(tower(x_BF), tower(x_BF))
