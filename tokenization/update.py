"""New items of a living catalogue get tokens from what is already fitted.

Codebooks, networks and merges stay as they are, and so do the tokens of the items that are there:
embeddings trained on the old artifact keep their meaning under the new one.
"""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact, fingerprint_arrays
from tokenization.artifact_files import TokenArtifactError
from tokenization.base import check_embeddings
from tokenization.collisions import resolve_collisions

logger = logging.getLogger(__name__)

_AGREEMENT = 0.5  # of known items' first codes, below which the embeddings are of another encoder


def update_tokens(
    artifact: TokenArtifact, item_ids: NDArray[np.integer], embeddings: NDArray[np.floating]
) -> TokenArtifact:
    """Return the artifact with tokens for those of `item_ids` that it does not know yet.

    Args:
        artifact: what is there; none of its items is dropped or changed.
        item_ids: integers `(N,)`, each once, known and new ones.
        embeddings: floating `(N, D)`, by the encoder that the tokenizer was fitted on.

    Returns:
        The same vocabulary, version one higher, with the parent's fingerprint in its manifest.

    Raises:
        TokenArtifactError: an artifact without tokenizer settings, or known items whose
            embeddings now fall to other codes: another encoder made them.
        ValueError: see `check_embeddings`; ids that do not match.
    """
    tokenizer = artifact.tokenizer
    if item_ids.shape != (len(embeddings),) or item_ids.dtype.kind not in "iu":
        raise ValueError(
            f"item_ids: expected one integer for each of {len(embeddings)} embeddings, found "
            f"{item_ids.dtype} of shape {item_ids.shape}"
        )
    embeddings = check_embeddings(embeddings, dim=tokenizer.dim)
    known = np.isin(item_ids, artifact.item_ids)
    if known.any():
        _check_encoder(artifact, item_ids[known], embeddings[known])
    new_ids, new_embeddings = item_ids[~known].astype(np.int64), embeddings[~known]
    if not len(new_ids):
        logger.info("no new items")
        return artifact
    codes = resolve_collisions(
        tokenizer.encode(new_embeddings),
        new_embeddings,
        tokenizer,
        how=artifact.manifest.get("collisions", "keep"),
        taken=artifact.codes,
    )
    cover = artifact.manifest["mem"]["cover"]
    mem_values, mem_offsets = artifact.merges.encode(codes, cover=cover)
    version = int(artifact.manifest.get("version", 1)) + 1
    logger.info("version %d: %d items, %d new", version, artifact.num_items, len(new_ids))
    return TokenArtifact(
        item_ids=np.concatenate([artifact.item_ids, new_ids]),
        codes=np.concatenate([artifact.codes, codes]),
        mem_values=np.concatenate([artifact.mem_values, mem_values]),
        mem_offsets=np.concatenate(
            [artifact.mem_offsets, artifact.mem_offsets[-1] + mem_offsets[1:]]
        ),
        codebooks=artifact.codebooks,
        tensors=artifact.tensors,
        merges=artifact.merges,
        manifest={
            **artifact.manifest,
            "version": version,
            "parent": artifact.fingerprint,
            "num_new_items": len(new_ids),
            "embedding_fingerprint": fingerprint_arrays(embeddings=embeddings),
        },
    )


def _check_encoder(
    artifact: TokenArtifact, item_ids: NDArray[np.integer], embeddings: NDArray[np.float32]
) -> None:
    order = np.argsort(artifact.item_ids)
    rows = order[np.searchsorted(artifact.item_ids, item_ids, sorter=order)]
    same = artifact.tokenizer.encode(embeddings)[:, 0] == artifact.codes[rows, 0]
    if same.mean() < _AGREEMENT:
        raise TokenArtifactError(
            f"embeddings: expected those of the encoder that the tokens were fitted on, but only "
            f"{same.mean():.0%} of {len(item_ids)} known items fall to their first code again; "
            f"embed with the old encoder, or fit new tokens without --update"
        )
