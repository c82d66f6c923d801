"""Co-click neighbourhoods as vectors, and a linear map from content to them, in closed form.

If items can choose embeddings freely, the leading eigenvectors of the matrix of pair scores are the
best ones under the spectral contrastive loss (HaoChen et al.), a quadratic relative of InfoNCE.
Content can't choose freely: ridge regression finds the nearest that it can express, for items
without a single pair too.

Shape suffixes: N items, P pairs, D dimensions of the content, H of the aligned embeddings.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray


def spectral_vectors(
    rows_P2: NDArray[np.int64], scores_P: NDArray[np.float64], *, size: int, out_dim: int
) -> NDArray[np.float64]:
    """Return the best free embeddings `(size, H)` of `size` items, each with a pair.

    Args:
        rows_P2: rows of the items of each pair.
        scores_P: how much they belong together, above 0.
        size: items, at least 2.
        out_dim: H: the greatest eigenvalues; zeros stand for negative ones, and fill what few items
            leave.
    """
    left, right = rows_P2.T
    half = scipy.sparse.coo_matrix((scores_P, (left, right)), shape=(size, size))
    count = min(out_dim, size - 1)
    rng = np.random.default_rng(0)  # of Lanczos's start: the same pairs give the same vectors
    values, vectors = scipy.sparse.linalg.eigsh(
        (half + half.T).tocsr(), k=count, which="LA", v0=rng.uniform(0.5, 1.5, size), rng=rng
    )
    found = np.zeros((size, out_dim))
    found[:, :count] = vectors[:, ::-1] * np.sqrt(values[::-1].clip(min=0)) * size**0.5
    return found


def spectral_map(
    x_ND: NDArray[np.float32],
    rows_P2: NDArray[np.int64],
    scores_P: NDArray[np.float64],
    *,
    out_dim: int,
    ridge: float,
) -> NDArray[np.float32]:
    """Return the map `(H, D)`.

    Args:
        x_ND: content of the items, centred and of values near 1.
        rows_P2: rows of the items of each pair.
        scores_P: how much they belong together, above 0.
        out_dim: H: the greatest eigenvalues; zeros stand for negative ones, and fill what few items
            leave.
        ridge: strength of the penalty on the map, an item.
    """
    known, places = np.unique(rows_P2, return_inverse=True)
    target_NH = spectral_vectors(places.reshape(-1, 2), scores_P, size=len(known), out_dim=out_dim)
    target_NH -= target_NH.mean(axis=0)
    content_ND = x_ND[known].astype(np.float64)
    gram_DD = content_ND.T @ content_ND + ridge * len(known) * np.eye(content_ND.shape[1])
    return np.linalg.solve(gram_DD, content_ND.T @ target_NH).T.astype(np.float32)
