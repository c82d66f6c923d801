import numpy as np
import pytest

from trainer.scaling_law import (
    PowerLaw,
    compare_exponents,
    fit_power_laws,
    fit_scaling,
)

SIZES = np.geomspace(1e5, 1e7, 6)


def curve(beta, *, floor=0.4, drop=0.1):
    """A law that falls by `drop` from the smallest size on."""
    return PowerLaw(floor=floor, factor=drop * SIZES[0] ** beta, exponent=beta)


def study(law, rng, *, noise, seeds=3, rows=0.0, draws=200):
    """Losses of a simulated study and its row-resampled draws: one shift for all sizes."""
    losses = law(SIZES)[:, None] + noise * rng.standard_normal((len(SIZES), seeds))
    shift = rows * rng.standard_normal((draws, 1, 1))
    return losses, losses[None] + shift


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 2.5])
def test_a_noiseless_law_is_found_again(beta):
    law = curve(beta)
    found = fit_power_laws(SIZES, law(SIZES)[None])[0]
    assert found.exponent == pytest.approx(beta, rel=0.01)
    assert found.floor == pytest.approx(0.4, rel=0.05)
    np.testing.assert_allclose(found(SIZES), law(SIZES), rtol=1e-4)


def test_the_fit_is_at_least_as_close_as_a_search_over_all_three_parameters():
    rng = np.random.default_rng(3)
    y = curve(0.4)(SIZES) + 0.004 * rng.standard_normal(len(SIZES))
    found = fit_power_laws(SIZES, y[None])[0]
    ours = ((found(SIZES) - y) ** 2).sum()
    best = np.inf
    for beta in np.linspace(0.02, 3.9, 300):
        for floor in np.linspace(0, y.min(), 200):
            x = SIZES**-beta
            factor = max(0.0, x @ (y - floor) / (x @ x))
            best = min(best, ((floor + factor * x - y) ** 2).sum())
    assert ours <= best * (1 + 1e-6)


def test_many_curves_are_fitted_as_one_by_one():
    rng = np.random.default_rng(0)
    curves = curve(0.5)(SIZES) + 0.003 * rng.standard_normal((7, len(SIZES)))
    together = fit_power_laws(SIZES, curves)
    for index, one in enumerate(curves):
        assert fit_power_laws(SIZES, one[None])[0] == together[index]
        np.testing.assert_allclose(together(SIZES)[index], together[index](SIZES))


def test_a_loss_that_rises_has_no_exponent():
    found = fit_power_laws(SIZES, np.linspace(0.4, 0.5, len(SIZES))[None])[0]
    assert np.isnan(found.exponent)
    assert found.factor == 0
    np.testing.assert_allclose(found(SIZES), 0.45)


def test_floor_is_never_negative():
    found = fit_power_laws(SIZES, (3 * SIZES**-0.2 - 0.05)[None])[0]
    assert found.floor >= 0


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        (SIZES[:3], [[1.0, 0.9, 0.8]], "at least 4 distinct sizes"),
        ([1, 1, 2, 3], [[1.0, 0.9, 0.8, 0.7]], "at least 4 distinct sizes"),
        ([-1, 1, 2, 3], [[1.0, 0.9, 0.8, 0.7]], "positive sizes"),
        ([1, 2, 3, 4], [[1.0, np.nan, 0.8, 0.7]], "finite positive losses"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(sizes, losses, message):
    with pytest.raises(ValueError, match=message):
        fit_power_laws(sizes, losses)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.002), (1, 0.001)])
def test_intervals_hold_the_true_exponent_about_as_often_as_they_say(seeds, noise):
    rng = np.random.default_rng(1)
    law = curve(0.5)
    held = 0
    for trial in range(80):
        losses, draws = study(law, rng, noise=noise, seeds=seeds, rows=0.001)
        low, high = fit_scaling(SIZES, losses, draws, seed=trial).exponent_ci
        held += low <= 0.5 <= high
    assert held >= 0.88 * 80


def test_noise_is_what_a_mean_over_seeds_scatters_by():
    rng = np.random.default_rng(2)
    losses, draws = study(curve(0.5), rng, noise=0.002, seeds=50)
    fit = fit_scaling(SIZES, losses, draws)
    assert fit.noise == pytest.approx(0.002 / 50**0.5, rel=0.15)
    assert fit.noise_from == "seeds"
    alone = fit_scaling(SIZES, losses[:, :1], draws[:, :, :1])
    assert alone.noise_from == "distance to the curve"
    assert alone.noise > fit.noise


def test_words_follow_the_interval():
    rng = np.random.default_rng(4)
    steep = fit_scaling(SIZES, *study(curve(0.9), rng, noise=0.0003), seed=1)
    shallow = fit_scaling(SIZES, *study(curve(0.2), rng, noise=0.0003), seed=2)
    found = compare_exponents(steep, shallow)
    assert found.verdict == "larger"
    assert found.ci[0] > 0
    assert compare_exponents(shallow, steep).verdict == "smaller"
    same = fit_scaling(SIZES, *study(curve(0.9), rng, noise=0.0003), seed=3)
    assert compare_exponents(steep, same).verdict == "undecided"


def test_equal_exponents_are_rarely_told_apart():
    rng = np.random.default_rng(5)
    wrong = 0
    for trial in range(60):
        a, b = (
            fit_scaling(SIZES, *study(curve(0.4), rng, noise=0.002), seed=2 * trial + side)
            for side in (0, 1)
        )
        wrong += compare_exponents(a, b).verdict != "undecided"
    assert wrong <= 6


def test_nothing_is_concluded_from_a_side_that_does_not_fall():
    rng = np.random.default_rng(6)
    steep = fit_scaling(SIZES, *study(curve(0.9), rng, noise=0.0003))
    flat = fit_scaling(SIZES, *study(curve(0.5, drop=1e-9), rng, noise=0.002))
    assert flat.undefined > 0.05
    found = compare_exponents(steep, flat)
    assert found.verdict == "undecided"
    assert found.undefined == flat.undefined
