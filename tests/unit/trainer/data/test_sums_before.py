import numpy as np

from trainer.data.sums_before import sums_before


def test_sums_are_those_of_the_same_key_and_a_smaller_time():
    rng = np.random.default_rng(0)
    keys, times = rng.integers(0, 6, 300), rng.integers(0, 20, 300)
    values = rng.normal(size=(300, 2))
    found = sums_before(keys, times, values)
    for row in range(300):
        before = (keys == keys[row]) & (times < times[row])
        np.testing.assert_allclose(found[row], values[before].sum(axis=0), atol=1e-12)


def test_no_rows():
    nothing = np.zeros(0, np.int64)
    assert sums_before(nothing, nothing, np.zeros((0, 3))).shape == (0, 3)
