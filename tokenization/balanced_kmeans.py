"""Balanced RQ-KMeans: residual k-means whose clusters are of equal size (OneRec).

A codeword has a price that is added to the squared distance to it; the prices that make all
clusters equally large are the dual variables of the transport problem "N items, N/K a codeword, at
least total distance". With prices an item's code depends on the item alone, so that new items are
encoded as the fitted ones were, and equal items share their codes.

Shape suffixes: N items, D dimensions, K codes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenization import residual
from tokenization.base import Codes, Embeddings, SemanticTokenizer, check_at_least, check_embeddings
from tokenization.kmeans import fit_kmeans

logger = logging.getLogger(__name__)

_BLOCK_VALUES = 1 << 22  # distances held at a time: 16 MiB of float32
_PRICE_STEPS = 60  # with falling temperature, once the centroids stand


@dataclass(frozen=True, kw_only=True)
class BalancedRQKMeans:
    """Settings of balanced residual k-means.

    Args:
        num_levels: codebooks, L: codes per item.
        num_codes: codewords per codebook, K.
        num_iterations: iterations per level: prices, assignment, means.
        points_per_code: items that prices are found on, per code; a step computes
            `points_per_code * num_codes**2` distances.
        seed: of the starting centroids and of that draw.
    """

    kind: ClassVar[str] = "balanced_rq_kmeans"

    num_levels: int = 3
    num_codes: int = 256
    num_iterations: int = 20
    points_per_code: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that every count is at least one."""
        for name in ("num_levels", "num_codes", "num_iterations", "points_per_code"):
            check_at_least(getattr(self, name), 1, name=name)
        check_at_least(self.seed, 0, name="seed")

    def fit(self, embeddings: NDArray[np.floating]) -> BalancedRQKMeansTokenizer:
        """Return the tokenizer fitted to `embeddings` `(N, D)`.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer items than codes.
        """
        left_over = check_embeddings(embeddings).copy()
        shape = (self.num_levels, self.num_codes)
        codebooks = np.empty((*shape, left_over.shape[1]), dtype=np.float32)
        prices = np.zeros(shape, dtype=np.float32)
        for level in range(self.num_levels):
            codebooks[level], prices[level] = self._fit_level(left_over, self.seed + level)
            codes = residual.nearest(left_over, codebooks[level], prices[level])
            left_over -= codebooks[level][codes]
            logger.info(
                "balanced rq-kmeans level %d of %d: largest cluster %.2f x the mean",
                level + 1,
                self.num_levels,
                np.bincount(codes).max() * self.num_codes / len(codes),
            )
        return BalancedRQKMeansTokenizer(
            config=self, tensors={"codebooks": codebooks, "prices": prices}
        )

    def _fit_level(
        self, points: Embeddings, seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return centroids `(K, D)` and prices `(K,)`."""
        centroids = fit_kmeans(points, num_codes=self.num_codes, num_iterations=5, seed=seed)
        drawn = np.random.default_rng(seed).permutation(len(points))
        sample = points[np.sort(drawn[: self.num_codes * self.points_per_code])]
        prices = np.zeros(self.num_codes, dtype=np.float32)
        for _ in range(self.num_iterations):
            prices = balance(sample, centroids, prices, num_steps=5, start=0.1, end=0.01)
            codes = residual.nearest(points, centroids, prices)
            counts = np.bincount(codes, minlength=self.num_codes)
            sums = np.zeros(centroids.shape, dtype=np.float64)
            order = np.argsort(codes, kind="stable")
            used = np.flatnonzero(counts)
            starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
            sums[used] = np.add.reduceat(points[order], starts, axis=0, dtype=np.float64)
            centroids[used] = (sums[used] / counts[used, None]).astype(np.float32)
        return centroids, balance(
            sample, centroids, prices, num_steps=_PRICE_STEPS, start=0.03, end=0.0003
        )


def balance(
    points: Embeddings,
    centroids: NDArray[np.float32],
    prices: NDArray[np.float32],
    *,
    num_steps: int,
    start: float,
    end: float,
) -> NDArray[np.float32]:
    """Return prices under which the clusters' sizes are closer to equal.

    Each step divides points softly among centroids, at a temperature that falls geometrically, and
    raises the price of those that get more than their share (Sinkhorn's dual update).

    Args:
        points: float32 `(N, D)`.
        centroids: float32 `(K, D)`.
        prices: float32 `(K,)` to start from.
        num_steps: updates.
        start: first temperature, as a share of how much farther than the nearest centroid all
            centroids are on average, in squared distance.
        end: last temperature.

    Returns:
        float32 `(K,)`, with mean 0.
    """
    squares_K = np.einsum("kd,kd->k", centroids, centroids)
    block = max(1, _BLOCK_VALUES // len(centroids))

    def distances() -> Iterator[NDArray[np.float32]]:
        for start_row in range(0, len(points), block):
            points_BD = points[start_row : start_row + block]
            squares_B = np.einsum("bd,bd->b", points_BD, points_BD)
            yield squares_B[:, None] + squares_K - 2.0 * (points_BD @ centroids.T)

    spread = sum(float((d_BK.mean(axis=1) - d_BK.min(axis=1)).sum()) for d_BK in distances())
    scale = spread / len(points)
    # Where all centroids are as near nothing but rounding is left to share out.
    if scale <= 1e-6 * float(squares_K.max()):
        return prices
    log_share = np.log(len(points) / len(centroids))
    for temperature in scale * np.geomspace(start, end, num_steps):
        sizes_K = np.zeros(len(centroids))
        for logits_BK in distances():
            logits_BK += prices
            logits_BK /= -temperature
            logits_BK -= logits_BK.max(axis=1, keepdims=True)
            np.exp(logits_BK, out=logits_BK)
            logits_BK /= logits_BK.sum(axis=1, keepdims=True)
            sizes_K += logits_BK.sum(axis=0, dtype=np.float64)
        prices = prices + (temperature * (np.log(sizes_K + 1e-3) - log_share)).astype(np.float32)
        prices -= prices.mean()
    return prices


class BalancedRQKMeansTokenizer(SemanticTokenizer):
    """Fitted codebooks `(L, K, D)` and the codewords' prices `(L, K)`."""

    kind = BalancedRQKMeans.kind

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return self.codebooks.shape[2]

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)` of least squared distance plus price, level by level."""
        checked = check_embeddings(embeddings, dim=self.dim)
        return residual.encode(checked, self.codebooks, self.tensors["prices"])

    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the sums of codewords `(N, D)` of `codes` `(N, l)`; see `residual.decode`."""
        return residual.decode(codes, self.codebooks)

    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances plus prices `(N, K)`."""
        checked = check_embeddings(embeddings, dim=self.dim)
        distances = residual.last_level_distances(checked, codes, self.codebooks)
        priced: NDArray[np.float32] = distances + self.tensors["prices"][-1]
        return priced
