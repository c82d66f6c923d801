import numpy as np
import pytest

from trainer.data.id_index import IdIndex

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "ids",
    [
        RNG.permutation(50),
        RNG.permutation(50) + 1000,
        RNG.permutation(50) - 25,
        np.unique(RNG.integers(-(2**62), 2**62, 50)),
        np.unique(RNG.integers(-(2**30), 2**30, 50)),
        np.array([5]),
        np.array([], dtype=np.int64),
    ],
    ids=["dense", "shifted", "negative", "sparse", "sparse and small", "one", "none"],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_equals_a_dictionary(ids: np.ndarray, dtype: type) -> None:
    rows = {int(value): row for row, value in enumerate(ids)}
    asked = np.concatenate([ids, ids[::-1], [-(2**31), 2**31 - 1, 0, 51, 999, 1050]]).astype(dtype)
    before = asked.copy()
    found = IdIndex(ids).rows(asked)
    assert found.tolist() == [rows.get(int(value), -1) for value in asked]
    assert (asked == before).all()
