"""The walk that residual quantizers share: nearest codeword, subtract, next level.

Shape suffixes: N items, B items of a block, D dimensions, L levels, K codes a level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokenization.base import Codebooks, Codes, Embeddings, check_codes

_BLOCK_VALUES = 1 << 22  # distances held at a time: 16 MiB of float32
_ROUNDING = np.float32(2e-6)  # of a score's terms


def nearest(
    points: Embeddings,
    codewords: NDArray[np.float32],
    prices: NDArray[np.float32] | None = None,
) -> NDArray[np.int32]:
    """Return, for each point, the index of the nearest codeword; ties go to the smallest index.

    Codewords whose scores differ by no more than float32 rounding tie: the matrix product rounds a
    row by its place in the block, and equal items must get equal codes wherever they stand (where
    items repeat, faiss leaves pairs of codewords exactly as far on either side of them).

    Args:
        points: float32 `(N, D)`.
        codewords: float32 `(K, D)`.
        prices: float32 `(K,)` added to the squared distances to each codeword, if any.

    Returns:
        int32 `(N,)`.
    """
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every c.
    half_squares_K = 0.5 * np.einsum("kd,kd->k", codewords, codewords)
    norms_K = np.sqrt(2 * half_squares_K)
    if prices is not None:
        half_squares_K = half_squares_K + 0.5 * prices
    block = max(1, _BLOCK_VALUES // len(codewords))
    nearest_N = np.empty(len(points), dtype=np.int32)
    for start in range(0, len(points), block):
        points_BD = points[start : start + block]
        scores_BK = points_BD @ codewords.T
        scores_BK -= half_squares_K
        best_B = scores_BK.argmax(axis=1)
        norms_B = np.sqrt(np.einsum("bd,bd->b", points_BD, points_BD))
        rounding_B = _ROUNDING * (norms_B * norms_K[best_B] + np.abs(half_squares_K[best_B]))
        least_B = scores_BK[np.arange(len(best_B)), best_B] - rounding_B
        nearest_N[start : start + block] = (scores_BK >= least_B[:, None]).argmax(axis=1)
    return nearest_N


def encode(
    embeddings: Embeddings, codebooks: Codebooks, prices: NDArray[np.float32] | None = None
) -> Codes:
    """Return the codes of the greedy residual walk.

    Args:
        embeddings: float32 `(N, D)`.
        codebooks: float32 `(L, K, D)`.
        prices: float32 `(L, K)` added to squared distances, if any.

    Returns:
        int32 `(N, L)`. Memory beyond the result is bounded, whatever N is.
    """
    num_levels, num_codes, dim = codebooks.shape
    block = max(1, _BLOCK_VALUES // max(num_codes, dim))
    codes_NL = np.empty((len(embeddings), num_levels), dtype=np.int32)
    for start in range(0, len(embeddings), block):
        residual_BD = embeddings[start : start + block].copy()
        for level, codewords in enumerate(codebooks):
            codes_B = nearest(residual_BD, codewords, None if prices is None else prices[level])
            codes_NL[start : start + block, level] = codes_B
            residual_BD -= codewords[codes_B]
    return codes_NL


def decode(codes: NDArray[np.integer], codebooks: Codebooks) -> Embeddings:
    """Return the sum of each item's codewords, level by level.

    Args:
        codes: integers `(N, l)` with `l <= L`: a prefix of the levels is decoded as far as it goes.
        codebooks: float32 `(L, K, D)`.

    Returns:
        float32 `(N, D)`.

    Raises:
        ValueError: codes that are not such a matrix, or lie outside `[0, K)`.
    """
    num_levels, num_codes, dim = codebooks.shape
    check_codes(codes, num_levels=num_levels, num_codes=num_codes)
    sums_ND = np.zeros((len(codes), dim), dtype=np.float32)
    for level in range(codes.shape[1]):
        sums_ND += codebooks[level][codes[:, level]]
    return sums_ND


def last_level_distances(
    embeddings: Embeddings, codes: NDArray[np.integer], codebooks: Codebooks
) -> NDArray[np.float32]:
    """Return squared distances `(N, K)` of the last codewords to what the levels before leave.

    The squared length of what is left, the same for all codewords of an item, is not added.
    """
    left_over = embeddings - decode(codes[:, : len(codebooks) - 1], codebooks)
    squares_K = np.einsum("kd,kd->k", codebooks[-1], codebooks[-1])
    distances: NDArray[np.float32] = squares_K - 2.0 * (left_over @ codebooks[-1].T)
    return distances
