from itertools import pairwise

import numpy as np
import pytest
import torch

from trainer.modules.dense_encoding import PiecewiseLinearEncoding


def naive(edges, value):
    code = []
    for low, high in pairwise(edges):
        if high - low < 1e-6:
            code.append(float(value > low + 5e-7))
        else:
            code.append(min(1.0, max(0.0, (value - low) / (high - low))))
    return code


def test_equals_a_loop_over_features_and_bins():
    rng = np.random.default_rng(0)
    sample = rng.gamma(2.0, 3.0, (500, 3)).astype(np.float32)
    encoding = PiecewiseLinearEncoding(num_features=3, num_bins=4)
    encoding.fit(sample)
    values = np.concatenate([rng.gamma(2.0, 4.0, (20, 3)), [[-5, 0, 1e6]]]).astype(np.float32)
    edges = [
        np.quantile(sample[:, f].astype(np.float64), [0, 0.25, 0.5, 0.75, 1]) for f in (0, 1, 2)
    ]
    expected = [
        [code for f in range(3) for code in naive(edges[f], float(row[f]))] for row in values
    ]
    found = encoding(torch.from_numpy(values))
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
    )
    assert found.shape == (21, encoding.out_dim) == (21, 12)


def test_code_rises_with_the_value_and_stays_between_zero_and_one():
    encoding = PiecewiseLinearEncoding(num_features=1, num_bins=8)
    encoding.fit(np.random.default_rng(0).normal(size=(200, 1)))
    code = encoding(torch.linspace(-9, 9, 101).unsqueeze(1))
    assert (code.diff(dim=0) >= 0).all()
    assert code[0].sum() == 0
    assert code[-1].sum() == 8


def test_feature_with_one_value_becomes_a_step_at_it():
    encoding = PiecewiseLinearEncoding(num_features=1, num_bins=3)
    encoding.fit(np.full((50, 1), 2.0))
    code = encoding(torch.tensor([[1.9], [2.0], [2.1]]))
    assert code.isfinite().all()
    assert code.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("num_rows", [0, 5])
def test_without_features_there_is_nothing_to_encode(num_rows):
    encoding = PiecewiseLinearEncoding(num_features=0, num_bins=4)
    encoding.fit(np.zeros((5, 0)))
    assert encoding(torch.zeros(num_rows, 0)).shape == (num_rows, 0)


def test_edges_are_saved_with_the_model_but_not_trained():
    encoding = PiecewiseLinearEncoding(num_features=2, num_bins=4)
    assert list(encoding.state_dict()) == ["edges_FE"]
    assert not list(encoding.parameters())
