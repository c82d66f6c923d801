import numpy as np
import pytest

from trainer.data.hashing import hash_buckets


def splitmix64(value: int) -> int:
    mask = 2**64 - 1
    mixed = (value + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)


def test_follows_splitmix64_on_plain_python_integers() -> None:
    ids = np.array([0, 1, -1, 17, 2**62, -(2**63), 2**63 - 1])
    expected = [splitmix64(int(i) % 2**64) % 1013 for i in ids]
    assert hash_buckets(ids, 1013).tolist() == expected
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # first output of the published generator, seed 0


@pytest.mark.parametrize("step", [1, 64, 1000])
def test_spreads_regular_ids_evenly(step: int) -> None:
    counts = np.bincount(hash_buckets(np.arange(100_000) * step, 64), minlength=64)
    chi_squared = ((counts - 100_000 / 64) ** 2 / (100_000 / 64)).sum()
    assert chi_squared < 120  # 63 degrees of freedom: 1 in 100,000 is above 117


def test_leaves_its_argument_alone_and_takes_narrow_types() -> None:
    ids = np.arange(5, dtype=np.int32)
    assert hash_buckets(ids, 10).tolist() == hash_buckets(ids.astype(np.int64), 10).tolist()
    assert ids.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="num_buckets is 0"):
        hash_buckets(ids, 0)
