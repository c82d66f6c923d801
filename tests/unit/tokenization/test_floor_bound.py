from __future__ import annotations

import numpy as np
import pytest

from tokenization.floor_bound import floor_bound, floor_shift
from tokenization.rq_kmeans import RQKMeans
from trainer.data.synthetic import Impressions, SyntheticLog
from trainer.data.synthetic_config import SyntheticConfig


def test_delta_and_its_limit_of_a_case_worked_by_hand():
    errors = np.array([3.0**2 + 4.0**2, 1.0])
    measured = floor_bound(errors, exponent=1.0, holder_constant=2.0)
    assert measured.delta == 3.0
    assert measured.delta_limit == pytest.approx(13**0.5)
    assert measured.bound == 6.0
    assert floor_bound(errors, exponent=2.0).delta == 13.0
    assert floor_bound(errors).bound is None
    with pytest.raises(ValueError, match="exponent: expected above 0 and at most 2"):
        floor_bound(errors, exponent=2.5)


def test_floor_shift_of_two_items_in_one_cell():
    logits = np.log(np.array([[0.2 / 0.8, 0.6 / 0.4, 0.5 / 0.5]]))

    def entropy(p):
        return -(p * np.log(p) + (1 - p) * np.log(1 - p))

    expected = (2 * entropy(0.4) - entropy(0.2) - entropy(0.6)) / 3
    assert floor_shift(logits, np.array([7, 7, 2])) == pytest.approx(expected)
    assert floor_shift(logits, np.array([0, 1, 2])) == pytest.approx(0.0, abs=1e-12)


CONTEXTS, ITEMS = 40, 1200


@pytest.fixture(scope="module")
def simulated():
    """Latents of items, true click probabilities in contexts of the log, gradients of the logit."""
    log = SyntheticLog(SyntheticConfig(num_rows=2000, num_items=400, num_users=50, days=4))
    rows, _ = next(iter(log.blocks()))
    items = np.arange(ITEMS) % log.config.num_items_ever
    chosen = np.random.default_rng(0).choice(len(rows.users), CONTEXTS, replace=False)
    every = Impressions(
        **{
            name: np.repeat(getattr(rows, name)[chosen], ITEMS)
            for name in ("requests", "users", "queries", "positions", "timestamps")
        },
        items=np.tile(items, CONTEXTS),
    )
    p_CN = log.probabilities(every)[0].reshape(CONTEXTS, ITEMS)
    world = log.world
    z_ND = np.concatenate([world.semantic_ID, world.idiosyncratic_ID], axis=1)[items]
    return z_ND, p_CN, log.click_gradients(rows.users[chosen], rows.queries[chosen])


def test_the_simulator_s_click_logit_is_as_smooth_as_its_gradients_say(simulated):
    z_ND, p_CN, gradients_CD = simulated
    logits_CN = np.log(p_CN / (1 - p_CN))
    expected = (z_ND[:1] - z_ND[1:]) @ gradients_CD.T
    np.testing.assert_allclose((logits_CN[:, :1] - logits_CN[:, 1:]).T, expected, atol=1e-4)


@pytest.mark.parametrize(("num_levels", "num_codes"), [(1, 2), (1, 16), (2, 16), (3, 32), (6, 64)])
def test_the_floor_of_the_simulator_s_clicks_rises_by_no_more_than_the_bound(
    simulated, num_levels, num_codes
):
    """TRM A.1.4 where everything is known: s = 1, L_eta the mean length of the gradients."""
    z_ND, p_CN, gradients_CD = simulated
    tokenizer = RQKMeans(num_levels=num_levels, num_codes=num_codes, num_iterations=8).fit(z_ND)
    codes = tokenizer.encode(z_ND)
    errors = np.square(z_ND - tokenizer.decode(codes)).sum(axis=1)
    # Each context has its own constant; the bound of the mean is that of the mean constant.
    smoothness = float(np.linalg.norm(gradients_CD, axis=1).mean())
    measured = floor_bound(errors, holder_constant=smoothness)
    logits_CN = np.log(p_CN / (1 - p_CN))
    shift = floor_shift(logits_CN, np.unique(codes, axis=0, return_inverse=True)[1])
    assert measured.delta <= measured.delta_limit
    assert 0 <= shift <= measured.bound
    nothing_told = floor_shift(logits_CN, np.zeros(ITEMS, dtype=int))
    assert shift < nothing_told
