from __future__ import annotations

import numpy as np

from tokenization.balanced_kmeans import BalancedRQKMeans, balance
from tokenization.rq_kmeans import RQKMeans


def lumpy(num_items=4000):
    """Half of all points in one small lump, the others spread out."""
    rng = np.random.default_rng(0)
    lump = rng.normal(size=(num_items // 2, 8)) * 0.3
    return np.concatenate([lump, rng.normal(size=(num_items // 2, 8)) * 3]).astype(np.float32)


def largest_share(codes, num_codes):
    return np.bincount(codes, minlength=num_codes).max() * num_codes / len(codes)


def test_clusters_are_of_equal_size_at_every_level_where_plain_k_means_is_not():
    points = lumpy()
    balanced = (
        BalancedRQKMeans(num_levels=3, num_codes=16, points_per_code=1000)
        .fit(points)
        .encode(points)
    )
    plain = RQKMeans(num_levels=3, num_codes=16).fit(points).encode(points)
    for level in range(3):
        counts = np.bincount(balanced[:, level], minlength=16)
        assert counts.max() < 1.1 * 250
        assert counts.min() > 0.9 * 250
    assert largest_share(plain[:, 0], 16) > 3


def test_balance_costs_little_distortion_beyond_what_equal_sizes_force():
    """One dimension: the least total distance of equal halves is the split at the median."""
    points = np.concatenate([np.zeros(75), np.ones(25) * 10])[:, None]
    points = (points + np.random.default_rng(0).normal(size=(100, 1))).astype(np.float32)
    centroids = np.array([[0.0], [10.0]], dtype=np.float32)
    prices = balance(
        points, centroids, np.zeros(2, dtype=np.float32), num_steps=200, start=1, end=0.01
    )
    second = ((points - centroids.T) ** 2 + prices).argmin(axis=1) == 1
    assert 48 <= second.sum() <= 52
    assert points[second].min() >= points[~second].max()
