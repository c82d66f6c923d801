"""Hash ids of any size into a fixed number of buckets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hash_buckets(ids: NDArray[np.integer], num_buckets: int) -> NDArray[np.int64]:
    """Return a bucket in `[0, num_buckets)` for each id.

    The mix is the finaliser of splitmix64 (Steele, Lea and Flood 2014): each input bit flips about
    half of the output bits, so ids in a row, or multiples of one number, spread evenly. The
    same on every machine and in every run.

    Args:
        ids: integers of any sign and shape.
        num_buckets: at least 1.

    Raises:
        ValueError: when `num_buckets` is below 1.
    """
    if num_buckets < 1:
        raise ValueError(f"num_buckets is {num_buckets}, expected at least 1")
    mixed = ids.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed %= np.uint64(num_buckets)
    return mixed.view(np.int64)
