"""One k-means over all points, seeded, by faiss."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from tokenization.base import Embeddings, check_enough_items

_STARTING_POINTS = 4  # averaged into one starting centroid, where there are as many a code


def fit_kmeans(
    points: Embeddings, *, num_codes: int, num_iterations: int, seed: int
) -> NDArray[np.float32]:
    """Return the centroids of Lloyd's algorithm under squared Euclidean distance.

    A centroid starts as the mean of a few random points, not as one point. In many dimensions the
    residuals of later levels lie near a sphere: a starting centroid on the sphere is farther from
    nearly all points than one near the middle, which then keeps them all. (MiniLM embeddings of
    MovieLens titles, 128 codes, third level: perplexity 9 from single points, 107 from means of
    4, and 6 % less distortion.)

    Every point is used in every iteration (faiss would draw 256 a centroid). A centroid that
    loses its points is moved by faiss beside a crowded one; where there are fewer distinct points
    than codes some centroids stay without points (dead codes, counted by `tokenization.quality`).

    Args:
        points: float32 `(N, D)`, finite.
        num_codes: centroids, K.
        num_iterations: Lloyd iterations.
        seed: of the draw of starting points.

    Returns:
        Centroids, float32 `(K, D)`.

    Raises:
        ValueError: fewer points than codes.
    """
    num_points, dim = points.shape
    check_enough_items(num_points, num_codes)
    kmeans = faiss.Kmeans(
        dim,
        num_codes,
        niter=num_iterations,
        seed=seed,
        spherical=False,
        min_points_per_centroid=1,
        max_points_per_centroid=-(-num_points // num_codes),
        verbose=False,
    )
    group = min(_STARTING_POINTS, num_points // num_codes)
    drawn = np.random.default_rng(seed).permutation(num_points)[: num_codes * group]
    starts = points[drawn].reshape(num_codes, group, dim).mean(axis=1)
    kmeans.train(points, init_centroids=starts)
    return np.asarray(kmeans.centroids, dtype=np.float32).reshape(num_codes, dim)
