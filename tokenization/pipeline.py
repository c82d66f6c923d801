"""From item embeddings to a token artifact, in one call."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numba
import numpy as np
import pyarrow
import safetensors
import torch.distributed as dist
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact, fingerprint_arrays, fingerprint_blocks
from tokenization.base import (
    Codes,
    SemanticTokenizer,
    TokenizerConfig,
    check_embeddings,
    describe,
)
from tokenization.collisions import Collisions, resolve_collisions
from tokenization.embedding_table import read_items, read_made
from tokenization.mem_tokens import MemConfig
from tokenization.points import ParquetFile
from tokenization.rq_kmeans import RQKMeans
from tokenization.shares import Share

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
    return _artifact(
        item_ids.astype(np.int64),
        codes,
        fitted,
        mem,
        weights,
        {
            "collisions": collisions,
            "embeddings": dict(made or {}),
            "embedding_fingerprint": fingerprint_arrays(embeddings=embeddings),
        },
    )


def fit_tokens_on_disk(
    path: Path,
    *,
    column: str = "embedding",
    tokenizer: RQKMeans,
    mem: MemConfig,
    weights_of: Callable[[NDArray[np.int64]], NDArray[np.int64] | None] = lambda _: None,
    collisions: Collisions = "keep",
) -> TokenArtifact | None:
    """Fit tokens on a parquet file that memory need not hold, on all ranks under torchrun.

    Every rank reads a share of the items in each pass; what is held are ids, codes and mem-tokens.

    Args:
        path: parquet file with `item_id` and the list column.
        column: of the embeddings.
        tokenizer: settings of the gen-tokens; only RQ-KMeans is fitted in passes.
        mem: settings of the mem-tokens.
        weights_of: item ids -> one integer an item for the mem-tokens' frequencies, or None.
        collisions: `keep` or `extra_code`.

    Returns:
        the artifact on the first rank, None on the others.

    Raises:
        ValueError: see `fit_tokens`; `next_nearest`, which looks at embeddings item by item.
    """
    if collisions == "next_nearest":
        raise ValueError(
            "collisions: next_nearest needs the embeddings in memory; expected keep or extra_code"
        )
    item_ids = read_items(path, "item_id")["item_id"].to_numpy().astype(np.int64)
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    start, stop = (len(item_ids) * part // world for part in (rank, rank + 1))
    source = ParquetFile(path, column=column, start=start, stop=stop)
    fitted = tokenizer.fit_source(source)
    codes = np.zeros((len(item_ids), fitted.num_levels), dtype=np.int32)
    for block in source.blocks():
        codes[start : start + len(block)] = fitted.encode(block)
        start += len(block)
    Share.of(source.shape[0]).add(codes)
    if rank:
        return None
    nothing = np.zeros((0, fitted.dim), dtype=np.float32)
    return _artifact(
        item_ids,
        resolve_collisions(codes, nothing, fitted, how=collisions),
        fitted,
        mem,
        weights_of(item_ids),
        {
            "collisions": collisions,
            "embeddings": read_made(path),
            "embedding_fingerprint": fingerprint_blocks(
                ParquetFile(path, column=column).blocks(), (len(item_ids), fitted.dim)
            ),
        },
    )


def _artifact(
    item_ids: NDArray[np.int64],
    codes: Codes,
    fitted: SemanticTokenizer,
    mem: MemConfig,
    weights: NDArray[np.integer] | None,
    manifest: Mapping[str, Any],
) -> TokenArtifact:
    """Combine codes into mem-tokens and put everything together."""
    merges = mem.fit(codes, num_codes=fitted.num_codes, weights=weights)
    mem_values, mem_offsets = merges.encode(codes, cover=mem.cover)
    logger.info("%d items: %d mem-tokens found", len(item_ids), len(merges))
    return TokenArtifact(
        item_ids=item_ids,
        codes=codes,
        mem_values=mem_values,
        mem_offsets=mem_offsets,
        codebooks=fitted.codebooks,
        tensors={name: array for name, array in fitted.tensors.items() if name != "codebooks"},
        merges=merges,
        manifest={
            "version": 1,
            "tokenizer": describe(fitted.config),
            "mem": {
                "kind": mem.kind,
                **dataclasses.asdict(mem),
                "cover": mem.cover,
                "weighted": weights is not None,
            },
            **manifest,
            "versions": {
                "python": platform.python_version(),
                **{package.__name__: package.__version__ for package in _PACKAGES},
            },
        },
    )
