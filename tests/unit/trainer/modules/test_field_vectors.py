import pytest
import torch
from torchrec.modules.deepfm import FactorizationMachine

from trainer.modules.field_vectors import FieldVectors, pairwise_products


def test_pairwise_products_equals_a_loop_over_pairs():
    x_BND = torch.randn(7, 5, 3, dtype=torch.float64)
    naive = torch.zeros(7, dtype=torch.float64)
    for row in range(7):
        for first in range(5):
            for second in range(first + 1, 5):
                naive[row] += torch.dot(x_BND[row, first], x_BND[row, second])
    torch.testing.assert_close(pairwise_products(x_BND)[:, 0], naive)


def test_torchrec_multiplies_dims_with_each_other_too():
    """Why it is not used: one vector alone has no pairs, yet its products come out."""
    one_vector = torch.tensor([[[2.0, 3.0]]])
    assert pairwise_products(one_vector).item() == 0
    assert FactorizationMachine()([one_vector]).item() == 2 * 3


def test_fields_of_one_dim_are_cut_and_nothing_else():
    fields = FieldVectors({"a": 3, "b": 3}, None, model="FM")
    assert not list(fields.parameters())
    x_BF = torch.randn(4, 6)
    torch.testing.assert_close(fields(x_BF), torch.stack([x_BF[:, :3], x_BF[:, 3:]], dim=1))


def test_fields_of_other_dims_are_projected_alone():
    torch.manual_seed(0)
    fields = FieldVectors({"a": 2, "b": 3, "c": 5}, 3, model="FM")
    x_BF = torch.randn(4, 10)
    first, last = fields.projections["0"], fields.projections["2"]
    expected = [
        x_BF[:, :2] @ first.weight.T + first.bias,
        x_BF[:, 2:5],
        x_BF[:, 5:] @ last.weight.T + last.bias,
    ]
    torch.testing.assert_close(fields(x_BF), torch.stack(expected, dim=1))
    assert sum(weight.numel() for weight in fields.parameters()) == (2 + 1) * 3 + (5 + 1) * 3


def test_unequal_dims_need_a_common_one():
    with pytest.raises(ValueError, match=r"FM .*one dim, but found \[2, 3\].*set field_dim"):
        FieldVectors({"a": 2, "b": 3}, None, model="FM")
