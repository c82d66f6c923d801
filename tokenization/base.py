"""What every tokenizer is: a frozen config that is fitted, and the fitted codebooks.

A config (:class:`TokenizerConfig`, for instance :class:`tokenization.rq_kmeans.RQKMeans`) is a
value; `fit` turns it and a matrix of item embeddings into a :class:`SemanticTokenizer`, which
never changes again. Same config, seed and embeddings on the same machine: same codes.

Shape suffixes: N items, D dimensions, L levels, K codes a level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
"""Item embeddings, float32 `(N, D)`, C-contiguous and finite."""

Codes = NDArray[np.int32]
"""Gen-token codes, int32 `(N, L)`, each in `[0, K)`."""

Codebooks = NDArray[np.float32]
"""Codewords, float32 `(L, K, D)`."""


class SemanticTokenizer(Protocol):
    """A fitted tokenizer: item embeddings to codes and back."""

    @property
    def num_levels(self) -> int:
        """Codes per item, L."""
        ...

    @property
    def num_codes(self) -> int:
        """Codes per level, K."""
        ...

    @property
    def codebooks(self) -> Codebooks:
        """Codewords, float32 `(L, K, D)`."""
        ...

    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)` of `embeddings` `(N, D)`."""
        ...

    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the embeddings `(N, D)` that `codes` `(N, L)` stand for."""
        ...

    def save(self, path: Path) -> None:
        """Write everything that `encode` and `decode` need to one file."""
        ...


class TokenizerConfig(Protocol):
    """The settings of a tokenizer; a frozen dataclass."""

    kind: ClassVar[str]
    """Name in manifests and reports, e.g. `rq_kmeans`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def num_levels(self) -> int:
        """Codes per item, L."""
        ...

    @property
    def num_codes(self) -> int:
        """Codes per level, K."""
        ...

    def fit(self, embeddings: NDArray[np.floating]) -> SemanticTokenizer:
        """Return the tokenizer fitted to `embeddings` `(N, D)`."""
        ...


def check_embeddings(
    embeddings: NDArray[np.floating], *, dim: int | None = None, name: str = "embeddings"
) -> Embeddings:
    """Return `embeddings` as a finite, C-contiguous float32 matrix.

    Args:
        embeddings: array `(N, D)` of any floating type.
        dim: demanded D, if any.
        name: what the message calls the array.

    Raises:
        ValueError: not a floating matrix, no rows or columns, another D, NaN or infinity
            (also a float64 value beyond float32).
    """
    array = np.asarray(embeddings)
    if array.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected a floating dtype (float16, float32, float64), found {array.dtype}; "
            f"convert with .astype(np.float32)"
        )
    if array.ndim != 2:
        raise ValueError(
            f"{name}: expected a matrix (items, dimensions), found shape {array.shape}"
        )
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one item and dimension, found {array.shape}")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(
            f"{name}: expected {dim} dimensions as in the codebooks, found {array.shape[1]}; "
            f"encode with the encoder that the tokenizer was fitted on"
        )
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(array, dtype=np.float32)
    # The sum of a row is finite exactly when no value is NaN or infinite, bar overflow: a cheap
    # first look without an (N, D) mask.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(matrix.sum(axis=1)))
    bad = suspects[~np.isfinite(matrix[suspects]).all(axis=1)]
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {len(matrix)} rows hold NaN or infinity (in float32), "
            f"the first is row {bad[0]}; drop these items or repair their embeddings"
        )
    return matrix


def check_at_least(value: int, minimum: int, *, name: str) -> None:
    """Raise a ValueError that names the field when `value` is below `minimum`."""
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, found {value}")
