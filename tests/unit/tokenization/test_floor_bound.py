from __future__ import annotations

import numpy as np
import pytest

from tokenization.floor_bound import floor_bound, floor_shift
from tokenization.rq_kmeans import RQKMeans
from trainer.data.synthetic_config import SyntheticConfig
from trainer.data.synthetic_world import SyntheticWorld


def test_delta_and_its_limit_of_a_case_worked_by_hand():
    embeddings = np.array([[3.0, 4.0], [0.0, 1.0]])
    measured = floor_bound(embeddings, np.zeros((2, 2)), exponent=1.0, holder_constant=2.0)
    assert measured.delta == 3.0
    assert measured.delta_limit == pytest.approx(13**0.5)
    assert measured.bound == 6.0
    assert floor_bound(embeddings, np.zeros((2, 2)), exponent=2.0).delta == 13.0
    assert floor_bound(embeddings, np.zeros((2, 2))).bound is None
    with pytest.raises(ValueError, match="exponent: expected above 0 and at most 2"):
        floor_bound(embeddings, embeddings, exponent=2.5)


def test_floor_shift_of_two_items_in_one_cell():
    logits = np.log(np.array([[0.2 / 0.8, 0.6 / 0.4, 0.5 / 0.5]]))

    def entropy(p):
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))

    expected = (2 * entropy(0.4) - entropy(0.2) - entropy(0.6)) / 3
    assert floor_shift(logits, np.array([7, 7, 2])) == pytest.approx(expected)
    assert floor_shift(logits, np.array([0, 1, 2])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("num_levels", "num_codes"), [(1, 2), (1, 16), (2, 16), (3, 32)])
def test_on_the_simulated_catalogue_the_bound_holds_and_both_sides_fall(num_levels, num_codes):
    """Logits linear in the simulated latents: exponent 1, L_eta the length of the context."""
    world = SyntheticWorld(SyntheticConfig(num_items=400, num_users=50))
    z_ND = world.semantic_ID[:2000]
    contexts_CD = np.random.default_rng(0).normal(size=(20, z_ND.shape[1])) * 0.7
    tokenizer = RQKMeans(num_levels=num_levels, num_codes=num_codes).fit(z_ND)
    codes = tokenizer.encode(z_ND)
    # Contexts differ in their constant; the mean bound is that of the mean constant.
    constant = float(np.linalg.norm(contexts_CD, axis=1).mean())
    measured = floor_bound(z_ND, tokenizer.decode(codes), holder_constant=constant)
    cells = np.unique(codes, axis=0, return_inverse=True)[1]
    shift = floor_shift(contexts_CD @ z_ND.T, cells)
    assert measured.delta <= measured.delta_limit
    assert 0 < shift <= measured.bound
    coarse = floor_shift(contexts_CD @ z_ND.T, np.zeros(len(z_ND), dtype=int))
    assert shift < coarse
