"""OPQ: a learned rotation, then one k-means in each of its subspaces (Ge et al.; STORE Table 3).

Shape suffixes: N items, D dimensions, L subspaces, S dimensions of a subspace, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray

from tokenization import residual
from tokenization.base import (
    Codes,
    Embeddings,
    SemanticTokenizer,
    check_at_least,
    check_codes,
    check_embeddings,
    check_enough_items,
)
from tokenization.kmeans import fit_kmeans


@dataclass(frozen=True, kw_only=True)
class OPQ:
    """Settings of OPQ: the rotation is faiss's, the codes are parallel, one a subspace.

    Args:
        num_levels: subspaces, L; embeddings are padded with zeros to a multiple of it.
        num_codes: codewords per subspace, K; any number, not only powers of two.
        num_rotations: alternations of rotation and quantizer.
        num_iterations: Lloyd iterations per subspace once the rotation stands.
        seed: of the starting centroids.
    """

    kind: ClassVar[str] = "opq"

    num_levels: int = 4
    num_codes: int = 256
    num_rotations: int = 20
    num_iterations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that every count is at least one."""
        for name in ("num_levels", "num_codes", "num_rotations", "num_iterations"):
            check_at_least(getattr(self, name), 1, name=name)
        check_at_least(self.seed, 0, name="seed")

    def fit(self, embeddings: NDArray[np.floating]) -> OPQTokenizer:
        """Return the tokenizer fitted to `embeddings` `(N, D)`.

        Raises:
            ValueError: embeddings that `check_embeddings` refuses, or fewer items than codes.
        """
        checked = check_embeddings(embeddings)
        check_enough_items(len(checked), self.num_codes)
        mean_D = checked.mean(axis=0, dtype=np.float64).astype(np.float32)
        width = -(-checked.shape[1] // self.num_levels)
        centred = _padded(checked - mean_D, width * self.num_levels)
        rotation = self._rotation(centred)
        rotated = (centred @ rotation.T).reshape(len(centred), self.num_levels, width)
        codebooks = np.stack(
            [
                fit_kmeans(
                    np.ascontiguousarray(rotated[:, level]),
                    num_codes=self.num_codes,
                    num_iterations=self.num_iterations,
                    seed=self.seed + level,
                )
                for level in range(self.num_levels)
            ]
        )
        tensors = {"codebooks": codebooks, "mean": mean_D, "rotation": rotation}
        return OPQTokenizer(config=self, tensors=tensors)

    def _rotation(self, centred: Embeddings) -> NDArray[np.float32]:
        """Return faiss's rotation, trained with a quantizer of at most `num_codes` codes."""
        dim = centred.shape[1]
        num_bits = max(1, min(8, self.num_codes.bit_length() - 1))
        if not centred.any() or len(centred) < 2**num_bits:
            return np.eye(dim, dtype=np.float32)
        matrix = faiss.OPQMatrix(dim, self.num_levels)
        quantizer = faiss.ProductQuantizer(dim, self.num_levels, num_bits)
        quantizer.cp.min_points_per_centroid = 1
        matrix.pq = quantizer
        matrix.niter = self.num_rotations
        matrix.train(centred)
        rotation = faiss.vector_to_array(matrix.A).reshape(dim, dim)
        return np.ascontiguousarray(rotation, dtype=np.float32)


class OPQTokenizer(SemanticTokenizer):
    """Fitted OPQ; `codebooks` `(L, K, S)` lie in the subspaces of the rotated embeddings."""

    kind = OPQ.kind

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings."""
        return len(self.tensors["mean"])

    def _rotated(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return `(N, L, S)`."""
        checked = check_embeddings(embeddings, dim=self.dim)
        rotation = self.tensors["rotation"]
        rotated = _padded(checked - self.tensors["mean"], len(rotation)) @ rotation.T
        return rotated.reshape(len(checked), self.num_levels, -1)

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the nearest codeword in each subspace, int32 `(N, L)`."""
        rotated = self._rotated(embeddings)
        codes = [
            residual.nearest(np.ascontiguousarray(rotated[:, level]), codewords)
            for level, codewords in enumerate(self.codebooks)
        ]
        return np.stack(codes, axis=1)

    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return embeddings `(N, D)`; subspaces without a column are at the mean."""
        check_codes(codes, num_levels=self.num_levels, num_codes=self.num_codes)
        width = self.codebooks.shape[2]
        rotated = np.zeros((len(codes), self.num_levels, width), dtype=np.float32)
        for level in range(codes.shape[1]):
            rotated[:, level] = self.codebooks[level][codes[:, level]]
        centred = rotated.reshape(len(codes), -1) @ self.tensors["rotation"]
        decoded: Embeddings = centred[:, : self.dim] + self.tensors["mean"]
        return decoded

    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return squared distances `(N, K)` in the last subspace."""
        last = self._rotated(embeddings)[:, -1]
        squares_K = np.square(self.codebooks[-1]).sum(axis=1)
        distances: NDArray[np.float32] = squares_K - 2.0 * (last @ self.codebooks[-1].T)
        return distances


def _padded(matrix: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the matrix with columns of zeros up to `width`."""
    missing = width - matrix.shape[1]
    return np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, missing)))) if missing else matrix
