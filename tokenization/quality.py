"""How good tokens are: codes in use, their evenness, what they lose, and what they tell apart."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact
from tokenization.base import check_embeddings
from tokenization.drift import mem_matrix
from tokenization.points import EmbeddingSource, Matrix


@dataclass(frozen=True, kw_only=True)
class LevelQuality:
    """One level of the gen-tokens.

    Args:
        level: from 0.
        dead_codes: codes that no item has.
        utilization: share of codes that some item has.
        perplexity: exp of the entropy of the codes' frequencies; `num_codes` when all are equal.
        gini: inequality of the codes' frequencies, 0 when all are equal, near 1 when one has all.
        distortion: mean squared distance of the items to what levels `0..level` decode to.
        distortion_fall: by how much of it this level lowers what the levels before leave.
        distortion_share: distortion as a share of the items' variance; 1 tells nothing, 0 all.
    """

    level: int
    dead_codes: int
    utilization: float
    perplexity: float
    gini: float
    distortion: float
    distortion_fall: float
    distortion_share: float


@dataclass(frozen=True, kw_only=True)
class TokenQuality:
    """Quality of a token artifact.

    Args:
        num_items: items, N.
        gen_rows: rows of the gen table, L * K.
        mem_rows: mem-tokens, M.
        row_share: (gen rows + mem rows) / items; 1 or more saves nothing against item ids.
        distinct_gen_tuples: different code tuples.
        collision_rate: share of items whose code tuple another item has too.
        distinct_token_bags: different sets of gen-tokens and mem-tokens, as a model sees them;
            mem-tokens follow from the codes, so this equals `distinct_gen_tuples`.
        distinct_mem_bags: different sets of mem-tokens alone, the empty one included.
        mem_rows_used: mem-tokens that some item has under the artifact's cover.
        mem_rows_single: of these, the ones that a single item has (under `finest` only: the
            other items that share it have it inside a larger mem-token).
        items_without_mem: items that have no mem-token.
        mem_tokens_per_item: mean number.
        levels: one record a level.
    """

    num_items: int
    gen_rows: int
    mem_rows: int
    row_share: float
    distinct_gen_tuples: int
    collision_rate: float
    distinct_token_bags: int
    distinct_mem_bags: int
    mem_rows_used: int
    mem_rows_single: int
    items_without_mem: int
    mem_tokens_per_item: float
    levels: tuple[LevelQuality, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def measure_quality(
    artifact: TokenArtifact, embeddings: NDArray[np.floating] | EmbeddingSource
) -> TokenQuality:
    """Measure an artifact against the embeddings of its items.

    Args:
        artifact: the tokens.
        embeddings: floating `(N, D)`, row `n` is that of `artifact.item_ids[n]`; or where they are
            read from, block by block.

    Raises:
        ValueError: embeddings of another number of items or dimensions.
    """
    source = checked_source(artifact, embeddings)
    _, tuple_of, tuple_counts = np.unique(
        artifact.codes, axis=0, return_inverse=True, return_counts=True
    )
    bags = mem_bags(artifact)
    mem_use = np.bincount(artifact.mem_values, minlength=artifact.num_merges)
    gen_rows = artifact.num_levels * artifact.num_codes
    token_bags = np.column_stack([tuple_of.reshape(-1), bags])
    return TokenQuality(
        num_items=artifact.num_items,
        gen_rows=gen_rows,
        mem_rows=artifact.num_merges,
        row_share=(gen_rows + artifact.num_merges) / artifact.num_items,
        distinct_gen_tuples=len(tuple_counts),
        collision_rate=float(tuple_counts[tuple_counts > 1].sum() / artifact.num_items),
        distinct_token_bags=len(np.unique(token_bags, axis=0)),
        distinct_mem_bags=len(np.unique(bags)),
        mem_rows_used=int((mem_use > 0).sum()),
        mem_rows_single=int((mem_use == 1).sum()),
        items_without_mem=int((np.diff(artifact.mem_offsets) == 0).sum()),
        mem_tokens_per_item=len(artifact.mem_values) / artifact.num_items,
        levels=_levels(artifact, source),
    )


def checked_source(
    artifact: TokenArtifact, embeddings: NDArray[np.floating] | EmbeddingSource
) -> EmbeddingSource:
    """Return the embeddings of an artifact's items as a source.

    Raises:
        ValueError: embeddings of another number of items or dimensions.
    """
    dim = artifact.tokenizer.dim
    if isinstance(embeddings, np.ndarray):
        source: EmbeddingSource = Matrix(check_embeddings(embeddings, dim=dim))
    else:
        source = embeddings
    if source.shape != (artifact.num_items, dim):
        raise ValueError(
            f"embeddings: expected one row for each of {artifact.num_items} items and {dim} "
            f"dimensions, found {source.shape[0]} and {source.shape[1]}"
        )
    return source


def squared_errors(artifact: TokenArtifact, source: EmbeddingSource) -> NDArray[np.float64]:
    """Squared distance of each item's embedding to what its codes decode to, `(N,)`."""
    codes, start, errors = artifact.codes[:, : len(artifact.codebooks)], 0, []
    for block in source.blocks():
        block -= artifact.tokenizer.decode(codes[start : start + len(block)])
        errors.append(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        start += len(block)
    return np.concatenate(errors)


def _distortions(artifact: TokenArtifact, source: EmbeddingSource) -> tuple[float, list[float]]:
    """Variance of the embeddings, and mean squared error of what each level decodes to."""
    mean = np.zeros(source.shape[1])
    for block in source.blocks():
        mean += block.sum(axis=0, dtype=np.float64) / source.shape[0]
    centre = mean.astype(np.float32)
    num_books = len(artifact.codebooks)
    variance, errors, start = 0.0, np.zeros(num_books), 0
    for block in source.blocks():
        variance += _squares(block - centre)
        codes = artifact.codes[start : start + len(block)]
        for level in range(num_books):
            errors[level] += _squares(block - artifact.tokenizer.decode(codes[:, : level + 1]))
        start += len(block)
    return variance / start, (errors / start).tolist()


def _levels(artifact: TokenArtifact, source: EmbeddingSource) -> tuple[LevelQuality, ...]:
    variance, distortions = _distortions(artifact, source)
    levels: list[LevelQuality] = []
    for level in range(artifact.num_levels):
        distortion = distortions[min(level, len(distortions) - 1)]  # an extra code tells nothing
        counts = np.bincount(artifact.codes[:, level], minlength=artifact.num_codes)
        used = counts[counts > 0] / artifact.num_items
        before = levels[-1].distortion if levels else variance
        levels.append(
            LevelQuality(
                level=level,
                dead_codes=artifact.num_codes - len(used),
                utilization=len(used) / artifact.num_codes,
                perplexity=float(np.exp(-(used * np.log(used)).sum())),
                gini=_gini(counts),
                distortion=distortion,
                distortion_fall=1 - distortion / before if before > 0 else 0.0,
                distortion_share=distortion / variance if variance > 0 else 0.0,
            )
        )
    return tuple(levels)


def _gini(counts: NDArray[np.int64]) -> float:
    ordered = np.sort(counts).astype(np.float64)
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def _squares(differences: NDArray[np.float32]) -> float:
    return float(np.einsum("nd,nd->", differences, differences, dtype=np.float64))


def mem_bags(artifact: TokenArtifact) -> NDArray[np.int64]:
    """Number the sets of mem-tokens: int64 `(N,)`, equal where the sets are."""
    return np.unique(np.sort(mem_matrix(artifact), axis=1), axis=0, return_inverse=True)[1].reshape(
        -1
    )
