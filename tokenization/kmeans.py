"""One k-means over all points, seeded, by faiss."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from tokenization.base import Embeddings


def fit_kmeans(
    points: Embeddings, *, num_codes: int, num_iterations: int, seed: int
) -> NDArray[np.float32]:
    """Return the centroids of Lloyd's algorithm under squared Euclidean distance.

    Every point is used in every iteration (faiss would draw 256 a centroid). A centroid that
    loses its points is moved by faiss beside a crowded one; where there are fewer distinct points
    than codes some centroids stay without points (dead codes, counted by `tokenization.quality`).

    Args:
        points: float32 `(N, D)`, finite.
        num_codes: centroids, K.
        num_iterations: Lloyd iterations.
        seed: of the K points that start as centroids.

    Returns:
        Centroids, float32 `(K, D)`.

    Raises:
        ValueError: fewer points than codes.
    """
    num_points, dim = points.shape
    if num_points < num_codes:
        raise ValueError(
            f"num_codes: {num_codes} codes need at least as many items, found {num_points} items; "
            f"set num_codes to {num_points} or lower"
        )
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
    kmeans.train(points)
    return np.asarray(kmeans.centroids, dtype=np.float32).reshape(num_codes, dim)
