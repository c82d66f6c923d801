"""What every tokenizer is: a frozen config that is fitted, and the fitted codebooks.

A config (:class:`TokenizerConfig`, for instance :class:`tokenization.rq_kmeans.RQKMeans`) is a
value; `fit` turns it and a matrix of item embeddings into a :class:`SemanticTokenizer`, which
never changes again. Same config, seed and embeddings on the same machine: same codes.

A fitted tokenizer is its config and a few named arrays (`tensors`), so that all of them save to
the same kind of file and travel in the same token artifact.

Shape suffixes: N items, D dimensions, L levels, K codes a level.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Embeddings = NDArray[np.float32]
"""Item embeddings, float32 `(N, D)`, C-contiguous and finite."""

Codes = NDArray[np.int32]
"""Gen-token codes, int32 `(N, L)`, each in `[0, K)`."""

Codebooks = NDArray[np.float32]
"""Codewords, float32 `(L, K, D)`; D is that of the latent or of the subspace where the tokenizer
quantizes something else than the embedding itself."""


class SemanticTokenizer(abc.ABC):
    """A fitted tokenizer: item embeddings to codes and back.

    Args:
        config: the settings that it was fitted with.
        tensors: its arrays by name, `codebooks` `(L, K, D)` among them.
    """

    kind: ClassVar[str]
    """As of its config."""

    def __init__(self, *, config: TokenizerConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.config = config
        self.tensors = dict(tensors)

    @property
    def codebooks(self) -> Codebooks:
        """Codewords, float32 `(L, K, D)`."""
        return self.tensors["codebooks"]

    @property
    def num_levels(self) -> int:
        """Codes per item, L."""
        return self.codebooks.shape[0]

    @property
    def num_codes(self) -> int:
        """Codes per level, K."""
        return self.codebooks.shape[1]

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimensions of the embeddings."""

    @abc.abstractmethod
    def encode(self, embeddings: NDArray[np.floating]) -> Codes:
        """Return the codes `(N, L)` of `embeddings` `(N, D)`."""

    @abc.abstractmethod
    def decode(self, codes: NDArray[np.integer]) -> Embeddings:
        """Return the embeddings `(N, D)` that `codes` `(N, l)`, `l <= L`, stand for.

        Fewer columns than levels decode as far as they tell.
        """

    @abc.abstractmethod
    def last_level_distances(
        self, embeddings: NDArray[np.floating], codes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return how far each last-level codeword is from what the levels before leave.

        Args:
            embeddings: floating `(N, D)`.
            codes: their codes `(N, L)`; the last column is not looked at.

        Returns:
            float32 `(N, K)`, squared distances up to a constant per item.
        """

    def save(self, path: Path) -> None:
        """Write settings and arrays to one safetensors file, whole or not at all."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        metadata = {"tokenizer": json.dumps(describe(self.config))}
        arrays = {name: np.ascontiguousarray(array) for name, array in self.tensors.items()}
        save_file(arrays, partial, metadata=metadata)
        partial.replace(path)


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


def describe(config: TokenizerConfig) -> dict[str, Any]:
    """Return the settings as JSON values, with the kind."""
    return {"kind": config.kind, **dataclasses.asdict(config)}


def check_codes(codes: NDArray[np.integer], *, num_levels: int, num_codes: int) -> None:
    """Raise a ValueError unless `codes` is `(N, l)`, `l <= num_levels`, within the codebooks."""
    if codes.ndim != 2 or codes.shape[1] > num_levels:
        raise ValueError(
            f"codes: expected shape (items, at most {num_levels}), found {codes.shape}"
        )
    if codes.size and (codes.min() < 0 or codes.max() >= num_codes):
        raise ValueError(
            f"codes: expected values in [0, {num_codes}), found {codes.min()} to {codes.max()}"
        )


def check_enough_items(num_items: int, num_codes: int) -> None:
    """Raise a ValueError when there are fewer items than codes."""
    if num_items < num_codes:
        raise ValueError(
            f"num_codes: {num_codes} codes need at least as many items, found {num_items} items; "
            f"set num_codes to {num_items} or lower"
        )


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
