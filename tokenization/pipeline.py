"""From item embeddings to a token artifact, in one call."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Mapping
from typing import Any

import faiss
import numba
import numpy as np
import pyarrow
import safetensors
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact, fingerprint_arrays
from tokenization.base import TokenizerConfig, check_embeddings, describe
from tokenization.collisions import Collisions, resolve_collisions
from tokenization.mem_tokens import MemConfig

logger = logging.getLogger(__name__)

_PACKAGES = (faiss, numba, np, pyarrow, safetensors)


def fit_tokens(
    item_ids: NDArray[np.integer],
    embeddings: NDArray[np.floating],
    *,
    tokenizer: TokenizerConfig,
    mem: MemConfig,
    weights: NDArray[np.integer] | None = None,
    collisions: Collisions = "keep",
    made: Mapping[str, Any] | None = None,
) -> TokenArtifact:
    """Fit gen-tokens and mem-tokens and return every item's (TRM section 3.2).

    Args:
        item_ids: integers `(N,)`, each once.
        embeddings: floating `(N, D)`, row `n` is that of `item_ids[n]`.
        tokenizer: settings of the gen-tokens, e.g. :class:`tokenization.rq_kmeans.RQKMeans`.
        mem: settings of the mem-tokens, or of n-grams in their place.
        weights: one integer `(N,)` an item for the mem-tokens' frequencies, e.g. exposures.
        collisions: what becomes of items with equal codes, see `tokenization.collisions`.
        made: how the embeddings were made, for the manifest.

    Raises:
        ValueError: ids and embeddings that do not match, or what `fit` of either part refuses.

    Example::

        artifact = fit_tokens(
            item_ids, embeddings,
            tokenizer=RQKMeans(num_levels=3, num_codes=128), mem=MemTokens(num_merges=2000),
        )
        artifact.save(Path("tokens"))
    """
    if item_ids.shape != (len(embeddings),) or item_ids.dtype.kind not in "iu":
        raise ValueError(
            f"item_ids: expected one integer for each of {len(embeddings)} embeddings, found "
            f"{item_ids.dtype} of shape {item_ids.shape}"
        )
    embeddings = check_embeddings(embeddings)
    fitted = tokenizer.fit(embeddings)
    codes = resolve_collisions(fitted.encode(embeddings), embeddings, fitted, how=collisions)
    merges = mem.fit(codes, num_codes=fitted.num_codes, weights=weights)
    mem_values, mem_offsets = merges.encode(codes, cover=mem.cover)
    logger.info("%d items: %d mem-tokens found", len(item_ids), len(merges))
    return TokenArtifact(
        item_ids=item_ids.astype(np.int64),
        codes=codes,
        mem_values=mem_values,
        mem_offsets=mem_offsets,
        codebooks=fitted.codebooks,
        tensors={name: array for name, array in fitted.tensors.items() if name != "codebooks"},
        merges=merges,
        manifest={
            "version": 1,
            "tokenizer": describe(tokenizer),
            "collisions": collisions,
            "embeddings": dict(made or {}),
            "mem": {
                "kind": mem.kind,
                **dataclasses.asdict(mem),
                "cover": mem.cover,
                "weighted": weights is not None,
            },
            "embedding_fingerprint": fingerprint_arrays(embeddings=embeddings),
            "versions": {
                "python": platform.python_version(),
                **{package.__name__: package.__version__ for package in _PACKAGES},
            },
        },
    )
