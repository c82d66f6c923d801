import numpy as np
import pytest

from trainer.bootstrap import RankedScores, Resamples, auc_samples, interval, sum_samples
from trainer.metrics import auc


def example(distinct, rows=300, users=25, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows).astype(float)
    return labels, rng.integers(0, distinct, rows) / distinct, rng.integers(0, users, rows)


@pytest.mark.parametrize("distinct", [2, 15, 10**9])
def test_weighted_auc_equals_auc_of_the_rows_written_out(distinct):
    labels, scores, user = example(distinct)
    resamples = Resamples(num_units=25, num_resamples=5, seed=3)
    found = auc_samples([RankedScores.sort(labels, scores, user)], resamples)
    for index, weights in enumerate(resamples):
        rows = np.repeat(np.arange(300), weights[user].astype(int))
        assert found[0, index] == pytest.approx(auc(labels[rows], scores[rows]), abs=1e-12)


def test_draws_keep_the_number_of_units_and_depend_on_the_seed_alone():
    draws = np.stack(list(Resamples(num_units=40, num_resamples=6, seed=1)))
    np.testing.assert_array_equal(draws.sum(axis=1), np.full(6, 40.0))
    again = np.stack(list(Resamples(num_units=40, num_resamples=3, seed=1)))
    np.testing.assert_array_equal(draws[:3], again)
    other = np.stack(list(Resamples(num_units=40, num_resamples=6, seed=2)))
    assert not np.array_equal(draws, other)
    assert len({tuple(draw) for draw in draws}) == 6


def test_a_model_against_itself_differs_by_nothing():
    labels, scores, user = example(50)
    ranked = RankedScores.sort(labels, scores, user)
    monotone = RankedScores.sort(labels, np.exp(scores), user)
    samples = auc_samples([ranked, monotone], Resamples(num_units=25, num_resamples=20))
    assert interval(samples[0] - samples[1]) == (0.0, 0.0)


def test_pairing_narrows_the_interval_of_a_difference():
    labels, scores, user = example(10**9, rows=3000, users=100)
    scores = scores + 0.5 * labels
    noisy = scores + 0.02 * np.random.default_rng(1).standard_normal(3000)
    a, b = auc_samples(
        [RankedScores.sort(labels, s, user) for s in (scores, noisy)],
        Resamples(num_units=100, num_resamples=200),
    )
    low, high = interval(a - b)
    alone_low, alone_high = interval(a)
    assert high - low < 0.3 * (alone_high - alone_low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Users with their own rates: 95 % intervals of a mean cover it in 100 repetitions."""
    covered = 0
    for repetition in range(100):
        rng = np.random.default_rng(repetition)
        sums = rng.normal(1.0, 0.5, 60)
        drawn = sum_samples(sums[None], Resamples(num_units=60, num_resamples=200, seed=7))[0]
        low, high = interval(drawn / 60)
        covered += low <= 1.0 <= high
    assert 88 <= covered <= 99


def test_sums_equal_rows_written_out():
    values = np.arange(5.0)
    resamples = Resamples(num_units=5, num_resamples=4)
    expected = [np.repeat(values, weights.astype(int)).sum() for weights in resamples]
    np.testing.assert_allclose(sum_samples(values[None], resamples)[0], expected)


def test_draws_without_the_metric_are_left_out():
    assert interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(interval(np.array([np.nan]))).all()
    one_class = RankedScores.sort(np.ones(3), np.array([0.1, 0.2, 0.3]), np.arange(3))
    assert np.isnan(one_class.auc(np.ones(3)))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="num_units=0"):
        Resamples(num_units=0, num_resamples=5)
    with pytest.raises(ValueError, match="level"):
        interval(np.ones(3), level=95)
