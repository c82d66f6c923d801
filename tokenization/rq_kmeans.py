"""RQ-KMeans: one k-means a level, each over what the levels before left over (TRM section 3.2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenization import residual
from tokenization.assignment import best_way
from tokenization.base import Codes, Embeddings, SemanticTokenizer, check_at_least, check_embeddings
from tokenization.kmeans import fit_centroids, nearest_centroids, sample_points
from tokenization.points import EmbeddingSource, Points, PointsInMemory, PointsOnDisk
from tokenization.shares import Share

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RQKMeans:
    """Settings of residual k-means; the defaults are those of TRM (section 4.1).

    Args:
        num_levels: codebooks, L: codes per item.
        num_codes: codewords per codebook, K; at least that many items are needed.
        num_iterations: Lloyd iterations per level.
        points_per_code: items per code that iterations look at, drawn anew at every level; None for
            all. With 256 (faiss's default) a fit of a million items takes half the time, and
            distortion is 2 % higher.
        seed: of the starting centroids.
    """

    kind: ClassVar[str] = "rq_kmeans"

    num_levels: int = 5
    num_codes: int = 4096
    num_iterations: int = 20
    points_per_code: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that every count is at least one."""
        check_at_least(self.num_levels, 1, name="num_levels")
        check_at_least(self.num_codes, 1, name="num_codes")
        check_at_least(self.num_iterations, 1, name="num_iterations")
        if self.points_per_code is not None:
            check_at_least(self.points_per_code, 1, name="points_per_code")
        check_at_least(self.seed, 0, name="seed")

    def fit(self, embeddings: NDArray[np.floating]) -> RQKMeansTokenizer:
        """Return the tokenizer fitted to `embeddings`.

        Args:
            embeddings: floating `(N, D)`; all N rows are used at every level.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer items than codes.
        """
        checked = check_embeddings(embeddings)
        return self.fit_points(PointsInMemory(checked), Share(0, len(checked), len(checked)))

    def fit_source(self, source: EmbeddingSource) -> RQKMeansTokenizer:
        """Return the tokenizer fitted to embeddings on disk, in little memory.

        Args:
            source: under torchrun, of this rank's share of the items; the codebooks are the same
                on every rank, and up to rounding those of one process.

        Raises:
            ValueError: see `fit`.
        """
        points = PointsOnDisk(source)
        return self.fit_points(points, Share.of(points.num_points))

    def fit_points(self, points: Points, share: Share) -> RQKMeansTokenizer:
        """Return the tokenizer fitted to `points`, which are walked down to the last level.

        Args:
            points: of this process.
            share: which of all points these are.
        """
        way = best_way()
        codebooks = np.empty((self.num_levels, self.num_codes, points.dim), dtype=np.float32)
        for level in range(self.num_levels):
            seen, part = points, share
            if self.points_per_code is not None:
                num_seen = self.points_per_code * self.num_codes
                seen, part = sample_points(points, share, num_seen, seed=self.seed + level)
            codebooks[level] = fit_centroids(
                seen,
                part,
                num_codes=self.num_codes,
                num_iterations=self.num_iterations,
                seed=self.seed + level,
                way=way,
            )
            if level + 1 < self.num_levels:
                codes = nearest_centroids(points, codebooks[level], way=way)
                points.descend(codebooks[level], codes)
            logger.info("rq-kmeans: level %d of %d fitted", level + 1, self.num_levels)
        return RQKMeansTokenizer(config=self, tensors={"codebooks": codebooks})


class RQKMeansTokenizer(SemanticTokenizer):
    """Fitted RQ-KMeans codebooks: the only tensor, `codebooks` `(L, K, D)`."""

    kind = RQKMeans.kind

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return self.codebooks.shape[2]

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)` of `embeddings` `(N, D)`; see `residual.encode`."""
        return residual.encode(check_embeddings(embeddings, dim=self.dim), self.codebooks)

    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the sums of codewords `(N, D)` of `codes` `(N, l)`; see `residual.decode`."""
        return residual.decode(codes, self.codebooks)

    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances `(N, K)`; see `residual.last_level_distances`."""
        checked = check_embeddings(embeddings, dim=self.dim)
        return residual.last_level_distances(checked, codes, self.codebooks)
