"""How far two token artifacts are apart, and which rows of the old tables fit the new ones.

Refitting renames codes: two codebooks may be equally good and share no index. Rows are therefore
matched by the items that have them in both artifacts: a new row takes over the old row whose items
overlap most with its own.

Shape suffixes: N items in both, R rows of the new table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenization.artifact import TokenArtifact
from tokenization.artifact_files import TokenArtifactError
from tokenization.vocabulary import gen_row


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What changed for the items that both artifacts have.

    Args:
        same_vocabulary: whether codebooks and merges are equal, so that rows keep their meaning.
        num_shared_items: items in both.
        num_added_items: items of the new one alone.
        num_removed_items: items of the old one alone.
        changed_codes: by level, share of shared items whose code is another number.
        moved_codes: by level, the same after codes are renamed to the old ones that fit them best:
            items that left their cluster.
        mem_jaccard: mean over shared items of |old and new| / |old or new| of the mem-tokens,
            renamed likewise; 1 for an item without any in both.
        carried_gen_rows: share of the new gen rows in use that take over an old row.
        carried_mem_rows: share of the new mem rows in use that take over an old row.
    """

    same_vocabulary: bool
    num_shared_items: int
    num_added_items: int
    num_removed_items: int
    changed_codes: tuple[float, ...]
    moved_codes: tuple[float, ...]
    mem_jaccard: float
    carried_gen_rows: float
    carried_mem_rows: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowRemap:
    """For each row of the new tables the old row that it takes over.

    Args:
        gen_rows: int64 `(L * K,)`, -1 for none.
        mem_rows: int64 `(M,)`, -1 for none.
    """

    gen_rows: NDArray[np.int64]
    mem_rows: NDArray[np.int64]


def carry_over(old_table: NDArray[np.floating], rows_R: NDArray[np.int64]) -> NDArray[Any]:
    """Return the new table: old rows where there are any, else the mean of the old table.

    Args:
        old_table: trained embeddings, floating `(rows, dim)`.
        rows_R: one of `RowRemap`'s arrays.
    """
    carried = old_table[rows_R.clip(min=0)]
    carried[rows_R < 0] = old_table.mean(axis=0)
    return carried


def measure_drift(
    old: TokenArtifact, new: TokenArtifact, *, min_overlap: float = 0.3
) -> tuple[Drift, RowRemap]:
    """Compare two artifacts item by item.

    Args:
        old: that embeddings were trained on.
        new: that they shall be carried over to.
        min_overlap: least Jaccard overlap of the items of two mem rows for one to take over the
            other; gen rows take over the one that most of their items had.

    Raises:
        TokenArtifactError: other numbers of levels, or no item in both.
    """
    if old.num_levels != new.num_levels:
        raise TokenArtifactError(
            f"drift: expected artifacts of equally many levels, found {old.num_levels} and "
            f"{new.num_levels}; there is no row to carry over between them"
        )
    shared, old_rows_N, new_rows_N = np.intersect1d(old.item_ids, new.item_ids, return_indices=True)
    if not len(shared):
        raise TokenArtifactError("drift: expected items that are in both artifacts, found none")
    same = old.vocabulary_fingerprint == new.vocabulary_fingerprint
    old_codes, new_codes = old.codes[old_rows_N], new.codes[new_rows_N]
    old_mem, new_mem = mem_matrix(old)[old_rows_N], mem_matrix(new)[new_rows_N]
    if same:
        remap = RowRemap(
            gen_rows=np.arange(new.num_levels * new.num_codes), mem_rows=np.arange(new.num_merges)
        )
    else:
        remap = RowRemap(
            gen_rows=_match(
                gen_row(old_codes, old.num_codes),
                gen_row(new_codes, new.num_codes),
                new.num_levels * new.num_codes,
                by_level=True,
                min_overlap=0.0,
            ),
            mem_rows=_match(
                old_mem, new_mem, new.num_merges, by_level=False, min_overlap=min_overlap
            ),
        )
    renamed = remap.gen_rows[gen_row(new_codes, new.num_codes)]
    moved = renamed != gen_row(old_codes, old.num_codes)
    used_gen = np.unique(gen_row(new.codes, new.num_codes))
    used_mem = np.unique(new.mem_values)
    drift = Drift(
        same_vocabulary=same,
        num_shared_items=len(shared),
        num_added_items=new.num_items - len(shared),
        num_removed_items=old.num_items - len(shared),
        changed_codes=tuple((old_codes != new_codes).mean(axis=0).tolist()),
        moved_codes=tuple(moved.mean(axis=0).tolist()),
        mem_jaccard=_jaccard(old_mem, new_mem, remap.mem_rows),
        carried_gen_rows=float((remap.gen_rows[used_gen] >= 0).mean()),
        carried_mem_rows=float((remap.mem_rows[used_mem] >= 0).mean()) if len(used_mem) else 1.0,
    )
    return drift, remap


def mem_matrix(artifact: TokenArtifact) -> NDArray[np.int64]:
    """Return mem-tokens as a matrix int64 `(N, W)`, -1 in unused places; W at least 1."""
    lengths = np.diff(artifact.mem_offsets)
    items = np.repeat(np.arange(artifact.num_items), lengths)
    places = np.arange(len(items)) - np.repeat(artifact.mem_offsets[:-1], lengths)
    matrix = np.full((artifact.num_items, max(lengths.max(initial=0), 1)), -1, dtype=np.int64)
    matrix[items, places] = artifact.mem_values
    return matrix


def _match(
    old_NW: NDArray[np.int64],
    new_NV: NDArray[np.int64],
    num_rows: int,
    *,
    by_level: bool,
    min_overlap: float,
) -> NDArray[np.int64]:
    """For each new row the old row with the greatest overlap of items; -1 below `min_overlap`."""
    if by_level:
        old, new = old_NW.reshape(-1), new_NV.reshape(-1)
    else:
        old = np.repeat(old_NW, new_NV.shape[1], axis=1).reshape(-1)
        new = np.tile(new_NV, (1, old_NW.shape[1])).reshape(-1)
        kept = (old >= 0) & (new >= 0)
        old, new = old[kept], new[kept]
    rows = np.full(num_rows, -1, dtype=np.int64)
    if not len(old):
        return rows
    stride = int(old.max()) + 1
    pairs, both = np.unique(new * stride + old, return_counts=True)
    pair_new, pair_old = pairs // stride, pairs % stride
    num_old = np.bincount(old_NW[old_NW >= 0].reshape(-1), minlength=stride)
    num_new = np.bincount(new_NV[new_NV >= 0].reshape(-1), minlength=num_rows)
    overlap = both / (num_old[pair_old] + num_new[pair_new] - both)
    # Gen rows go by the share of the new row's items, so that a row split in two is carried twice.
    score = both.astype(np.float64) if by_level else overlap
    order = np.lexsort((-pair_old, score))  # the best pair of a new row is assigned last
    order = order[overlap[order] >= min_overlap]
    rows[pair_new[order]] = pair_old[order]
    return rows


def _jaccard(
    old_NW: NDArray[np.int64], new_NV: NDArray[np.int64], mem_rows: NDArray[np.int64]
) -> float:
    """Mean overlap of the items' mem-tokens, new ones under their old names."""
    held_NV = new_NV >= 0
    renamed_NV = np.full(new_NV.shape, -2, dtype=np.int64)  # a new one that took nothing over
    renamed_NV[held_NV] = np.where(mem_rows[new_NV[held_NV]] >= 0, mem_rows[new_NV[held_NV]], -2)
    renamed_NV = np.sort(renamed_NV, axis=1)
    repeated = np.zeros(renamed_NV.shape, dtype=bool)
    repeated[:, 1:] = (renamed_NV[:, 1:] == renamed_NV[:, :-1]) & (renamed_NV[:, 1:] >= 0)
    in_old = (renamed_NV[:, :, None] == old_NW[:, None, :]).any(axis=2) & (renamed_NV >= 0)
    both = (in_old & ~repeated).sum(axis=1)
    either = (old_NW >= 0).sum(axis=1) + held_NV.sum(axis=1) - repeated.sum(axis=1) - both
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())
