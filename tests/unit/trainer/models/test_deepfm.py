import pytest
import torch

from trainer.models.deepfm import DeepFMConfig

FEATURES = {"user": 4, "candidate": 4, "history": 4}


def test_output_is_deep_first_and_second_order_side_by_side():
    torch.manual_seed(0)
    tower = DeepFMConfig(hidden_dims=(6, 5)).build(FEATURES)
    x_BF = torch.randn(3, 12)
    out = tower(x_BF)
    assert out.shape == (3, tower.out_dim) == (3, 7)
    user, candidate, history = x_BF[:, :4], x_BF[:, 4:8], x_BF[:, 8:]
    second = (user * candidate + user * history + candidate * history).sum(1)
    first = x_BF @ tower.first_order.weight[0] + tower.first_order.bias
    linears = [layer for layer in tower.blocks[0] if isinstance(layer, torch.nn.Linear)]
    deep = x_BF
    for linear in linears:
        deep = torch.relu(deep @ linear.weight.T + linear.bias)
    torch.testing.assert_close(out, torch.cat([deep, first[:, None], second[:, None]], dim=1))


def test_every_feature_gets_a_gradient():
    tower = DeepFMConfig(hidden_dims=(8,)).build(FEATURES)
    x_BF = torch.randn(2, 12, requires_grad=True)
    tower(x_BF).sum().backward()
    assert (x_BF.grad != 0).all()


def test_features_of_unequal_dims_are_refused_by_name():
    with pytest.raises(ValueError, match=r"one dim, but found \[4, 8\].*'dense': 8"):
        DeepFMConfig(hidden_dims=(8,)).build({**FEATURES, "dense": 8})
