import pytest
import torch

from trainer.modules.per_token import FeatureTokens, PerTokenLinear


def test_each_token_has_a_layer_of_its_own():
    torch.manual_seed(0)
    layer = PerTokenLinear(3, 4, 5).double()
    x_BTI = torch.randn(2, 3, 4, dtype=torch.float64)
    expected = torch.stack(
        [
            torch.stack([x @ layer.weight_TIO[t] + layer.bias_TO[t] for t, x in enumerate(row)])
            for row in x_BTI
        ]
    )
    torch.testing.assert_close(layer(x_BTI), expected)


def test_features_are_cut_in_order_and_the_last_part_is_padded():
    torch.manual_seed(0)
    tokens = FeatureTokens(10, num_tokens=4, dim=2).double()
    x_BF = torch.randn(3, 10, dtype=torch.float64)
    padded = torch.cat([x_BF, torch.zeros(3, 2, dtype=torch.float64)], dim=1)
    weight, bias = tokens.project.weight_TIO, tokens.project.bias_TO
    expected = torch.stack(
        [padded[:, 3 * t : 3 * t + 3] @ weight[t] + bias[t] for t in range(4)], dim=1
    )
    torch.testing.assert_close(tokens(x_BF), expected)


def test_more_tokens_than_features_is_padded():
    assert FeatureTokens(3, num_tokens=5, dim=2)(torch.randn(2, 3)).shape == (2, 5, 2)


def test_initial_weights_are_those_of_a_linear_layer():
    layer = PerTokenLinear(8, 16, 64)
    assert layer.weight_TIO.abs().max() <= 1 / 4
    assert layer.weight_TIO.std().item() == pytest.approx(1 / 4 / 3**0.5, rel=0.1)
