from __future__ import annotations

import logging

import numpy as np
import pytest

from tokenization import assignment
from tokenization.assignment import assign, best_way, why_not_fused

needs_fused = pytest.mark.skipif(why_not_fused() is not None, reason=str(why_not_fused()))
WAYS = ["plain", pytest.param("fused", marks=needs_fused)]


def naive(points, centroids):
    distances = ((points[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances


def run(points, centroids, way):
    sums = np.zeros(centroids.shape)
    counts = np.zeros(len(centroids), dtype=np.int64)
    return assign(points, centroids, sums, counts, way=way), sums, counts


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_points", [1, 5, 241, 1000])
@pytest.mark.parametrize(("num_codes", "dim"), [(1, 3), (16, 8), (63, 7), (65, 64), (200, 33)])
def test_nearest_centroids_sums_and_counts(way, num_points, num_codes, dim):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(num_points, dim)).astype(np.float32) + 5
    centroids = rng.normal(size=(num_codes, dim)).astype(np.float32) + 5
    codes, sums, counts = run(points, centroids, way)
    expected, distances = naive(points, centroids)
    assert codes.dtype == np.int32
    # bf16 keeps 8 bits: a code may differ where another is as near to about 1 %.
    chosen = distances[np.arange(num_points), codes]
    assert (chosen <= distances.min(axis=1) * 1.05 + 1e-4).all()
    assert (codes == expected).mean() > (0.97 if way == "fused" else 0.999)
    np.testing.assert_array_equal(counts, np.bincount(codes, minlength=num_codes))
    for code in range(num_codes):
        np.testing.assert_allclose(
            sums[code], points[codes == code].sum(axis=0, dtype=np.float64), atol=1e-9
        )


@needs_fused
def test_a_large_mean_costs_no_digits():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 16)).astype(np.float32)
    centroids = rng.normal(size=(32, 16)).astype(np.float32)
    near, _, _ = run(points, centroids, "fused")
    far, _, _ = run(points + 1000, centroids + 1000, "fused")
    assert (near == far).mean() > 0.98


@needs_fused
def test_equal_centroids_tie_to_the_smallest_code():
    centroids = np.zeros((200, 4), dtype=np.float32)
    centroids[[3, 70, 150]] = 1.0
    codes, _, _ = run(np.ones((10, 4), dtype=np.float32), centroids, "fused")
    assert codes.tolist() == [3] * 10


def test_sums_are_added_to_what_is_there():
    sums, counts = np.ones((1, 2)), np.array([4])
    assign(np.full((3, 2), 2, np.float32), np.zeros((1, 2), np.float32), sums, counts, way="plain")
    assert sums.tolist() == [[7, 7]]
    assert counts.tolist() == [7]


def test_without_a_compiler_the_plain_way_is_taken_and_said(monkeypatch, caplog):
    monkeypatch.setattr(assignment.torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(assignment, "compiler", lambda: None)
    best_way.cache_clear()
    with caplog.at_level(logging.INFO):
        assert best_way() == "plain"
    best_way.cache_clear()
    assert "no C++ compiler found; install g++" in caplog.text


def test_without_bf16_products_the_plain_way_is_taken_and_said(monkeypatch, caplog):
    monkeypatch.setattr(assignment.torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    best_way.cache_clear()
    with caplog.at_level(logging.INFO):
        assert best_way() == "plain"
    best_way.cache_clear()
    assert "no bf16 dot products" in caplog.text
