"""Mem-tokens: exact byte-pair encoding over level-tagged codes (TRM section 3.2).

An item's sequence is its gen rows, `level * K + code`, level by level. The most frequent pair of
neighbours becomes a new symbol, again and again; the symbols so made are the mem-tokens, learnable
names for combinations of codes that items share. Symbol ids: gen rows `0 .. L*K-1`, then merge
`i` makes symbol `L*K + i`.

Rules, stated because everything else depends on them:

* frequency of a pair = number of items that hold it (with weights: the sum of their weights);
* ties go to the smallest left symbol id, then to the smallest right symbol id;
* a pair held by fewer than `min_frequency` items is never merged, whatever its weight, so that no
  mem-token is an item id in disguise.

Every symbol covers a fixed range of levels, so an item holds a pair at most once, at one boundary
between levels. The state is therefore flat: for each item and boundary the pair that meets there.
"""

from __future__ import annotations

import heapq
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from tokenization.base import Codes, check_at_least
from tokenization.segmentation import hash_table, number, segment, windows
from tokenization.vocabulary import gen_row

Cover = Literal["finest", "tree", "windows"]
"""Which tokens an item gets: `finest`, those of its final segmentation; `tree`, also the
smaller ones that these were merged from; `windows`, every run of codes that has a token, whatever
it overlaps (`tokenization.ngrams.KGrams`)."""


class MemConfig(Protocol):
    """Settings of combinations of codes: BPE, prefixes or k-grams; a frozen dataclass."""

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def cover(self) -> Cover:
        """Which tokens an item gets."""
        ...

    @property
    def num_merges(self) -> int:
        """Most tokens."""
        ...

    def max_tokens(self, *, num_levels: int, num_codes: int) -> int:
        """Most tokens that codes of this shape can give: rows of the mem table, unhashed."""
        ...

    def fit(
        self, codes: Codes, *, num_codes: int, weights: NDArray[np.integer] | None = None
    ) -> Merges:
        """Return the combinations found in codes `(N, L)`."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemTokens:
    """Settings of mem-tokens by byte-pair encoding.

    Args:
        num_merges: most merges to make (the paper's largest vocabulary: 20 million); 0 for an
            artifact of gen-tokens alone.
        min_frequency: fewest items that must share a mem-token, at least 2.
        cover: which mem-tokens an item gets, `finest` or `tree`, see `Cover`.
    """

    kind: ClassVar[str] = "bpe"

    num_merges: int = 20_000_000
    min_frequency: int = 2
    cover: Literal["finest", "tree"] = "finest"

    def __post_init__(self) -> None:
        """Check counts and cover."""
        check_at_least(self.num_merges, 0, name="num_merges")
        check_at_least(self.min_frequency, 2, name="min_frequency")
        if self.cover not in ("finest", "tree"):
            raise ValueError(f"cover: expected 'finest' or 'tree', found {self.cover!r}")

    def max_tokens(self, *, num_levels: int, num_codes: int) -> int:
        """Most merges; fewer than `num_merges` where codes have fewer runs (and ways to make one).

        Args:
            num_levels: codes an item, L.
            num_codes: codes a level, K.
        """
        return min(
            self.num_merges,
            sum(
                (num_levels - length + 1)
                * num_codes**length
                * (math.comb(2 * length - 2, length - 1) // length)  # binary trees over the run
                for length in range(2, num_levels + 1)
            ),
        )

    def fit(
        self, codes: Codes, *, num_codes: int, weights: NDArray[np.integer] | None = None
    ) -> Merges:
        """Return the merges of the items' codes, in order.

        Args:
            codes: int32 `(N, L)` in `[0, num_codes)`.
            num_codes: codes per level, K.
            weights: one integer `(N,)` an item, at least 0, for instance its exposures; pairs are
                then taken by the sum of these.

        Raises:
            ValueError: codes or weights out of range or shape.
        """
        if codes.ndim != 2 or codes.shape[1] == 0:
            raise ValueError(f"codes: expected shape (items, levels), found {codes.shape}")
        weights = check_weights(weights, len(codes))
        pair_of, left, right = _starting_pairs(codes, num_codes)
        left, right, count = _merge(
            pair_of,
            left,
            right,
            weights,
            num_codes,
            min(self.num_merges, pair_of.size // self.min_frequency),
            self.min_frequency,
        )
        return Merges(
            left=left, right=right, count=count, num_levels=codes.shape[1], num_codes=num_codes
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Merges:
    """Merges in the order in which they were made; merge `i` makes mem-token `i`.

    A merge of a gen row with itself, which no item can hold, stands for the single code
    (`tokenization.ngrams` makes such where runs of length 1 are asked for).

    Args:
        left: symbol ids, int64 `(M,)`.
        right: symbol ids, int64 `(M,)`.
        count: items that held the pair when it was merged, int64 `(M,)`.
        num_levels: L of the codes.
        num_codes: K of the codes.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    count: NDArray[np.int64]
    num_levels: int
    num_codes: int

    def __len__(self) -> int:
        """Return the number of merges, M."""
        return len(self.left)

    def encode(self, codes: Codes, *, cover: Cover) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the mem-tokens of items, those that were fitted on or new ones.

        Args:
            codes: int32 `(N, L)` in `[0, K)`.
            cover: `finest` lists an item's mem-tokens by level; `tree` by mem-token id;
                `windows` by length, then by level. Single codes (see `Merges`) come first.

        Returns:
            values int64 in `[0, M)` and offsets int64 `(N + 1,)`: item `n` has
            `values[offsets[n]:offsets[n + 1]]`, possibly none.

        Raises:
            ValueError: codes of another shape or range than the merges'.
        """
        if codes.ndim != 2 or codes.shape[1] != self.num_levels:
            raise ValueError(
                f"codes: expected shape (items, {self.num_levels}) as the merges were fitted on, "
                f"found {codes.shape}"
            )
        num_gen = self.num_levels * self.num_codes
        keys = self.left * (num_gen + len(self)) + self.right
        rows = gen_row(codes, self.num_codes)
        if cover == "windows":
            order = np.argsort(keys)
            tokens = windows(rows, keys[order], order, num_gen)
        else:
            tokens = segment(rows, hash_table(keys), num_gen, num_gen + len(self), cover == "tree")
        single = self.left == self.right
        if single.any():
            token_of = np.full(num_gen, -1, dtype=np.int64)
            token_of[self.left[single]] = np.flatnonzero(single)
            tokens = np.concatenate([token_of[rows], tokens], axis=1)
        kept = tokens >= 0
        offsets = np.zeros(len(codes) + 1, dtype=np.int64)
        np.cumsum(kept.sum(axis=1), out=offsets[1:])
        return tokens[kept], offsets


def check_weights(weights: NDArray[np.integer] | None, num_items: int) -> NDArray[np.int64]:
    """Return one int64 weight an item, 1 where none are given.

    Raises:
        ValueError: not one integer of at least 0 for each item.
    """
    if weights is None:
        return np.ones(num_items, dtype=np.int64)
    if weights.shape != (num_items,) or weights.dtype.kind not in "iu":
        raise ValueError(
            f"weights: expected one integer for each of {num_items} items, found "
            f"{weights.dtype} of shape {weights.shape}"
        )
    if weights.size and weights.min() < 0:
        raise ValueError(f"weights: expected at least 0, found {weights.min()}")
    return weights.astype(np.int64)


def _starting_pairs(
    codes: Codes, num_codes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Number the pairs of neighbouring gen rows.

    Returns:
        the pair at each item's boundaries, int64 `(N, L - 1)`; left and right symbols of each pair.
    """
    rows = gen_row(codes, num_codes)
    num_symbols = rows.shape[1] * num_codes
    met = rows[:, :-1] * num_symbols + rows[:, 1:]
    pair_of = np.empty(met.shape, dtype=np.int64)
    found = [np.empty(0, dtype=np.int64)]
    start = 0
    # A pair stands at one boundary only, so boundaries are numbered each on its own.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for boundary, (numbers, keys) in enumerate(threads.map(number, met.T.copy())):
            pair_of[:, boundary] = numbers + start
            found.append(keys)
            start += len(keys)
    keys = np.concatenate(found)
    return pair_of, keys // num_symbols, keys % num_symbols


_LEFT, _RIGHT, _COUNT, _WEIGHT, _HEAD = range(5)  # columns of a pair
_ITEM, _NEXT = range(2)  # columns of a node


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _doubled(array: NDArray[np.int64]) -> NDArray[np.int64]:  # pragma: no cover, compiled
    longer = np.empty((2 * len(array) + 16, array.shape[1]), dtype=np.int64)
    longer[: len(array)] = array
    return longer


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _merge(  # pragma: no cover, compiled
    pair_of: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    weights: NDArray[np.int64],
    num_codes: int,
    max_merges: int,
    min_frequency: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    num_items, num_boundaries = pair_of.shape
    num_levels = num_boundaries + 1
    num_gen = num_levels * num_codes

    # A pair's items are a linked list of nodes; a node is stale once the item holds another pair
    # there. Pairs only ever lose items after the merge that made them. What belongs to a pair, or
    # to a node, is one row, so that it is one line of the cache.
    num_pairs = len(left)
    pairs = np.zeros((num_pairs, 5), dtype=np.int64)
    pairs[:, _LEFT] = left
    pairs[:, _RIGHT] = right
    pairs[:, _HEAD] = -1
    num_nodes = num_items * num_boundaries
    nodes = np.empty((num_nodes, 2), dtype=np.int64)
    node = 0
    for item in range(num_items):
        for boundary in range(num_boundaries):
            pair = pairs[pair_of[item, boundary]]
            pair[_COUNT] += 1
            pair[_WEIGHT] += weights[item]
            nodes[node, _ITEM] = item
            nodes[node, _NEXT] = pair[_HEAD]
            pair[_HEAD] = node
            node += 1

    heap = [
        (-pairs[p, _WEIGHT], pairs[p, _LEFT], pairs[p, _RIGHT], p)
        for p in range(num_pairs)
        if pairs[p, _COUNT] >= min_frequency
    ]
    heapq.heapify(heap)

    # Symbol s covers the levels first[s] .. last[s].
    first = np.empty(num_gen + max_merges, dtype=np.int64)
    last = np.empty(num_gen + max_merges, dtype=np.int64)
    for symbol in range(num_gen):
        first[symbol] = symbol // num_codes
        last[symbol] = symbol // num_codes
    # The pair of the newest symbol and neighbour s, if made: a neighbour is on one side only.
    made_by = np.full(num_gen + max_merges, -1, dtype=np.int64)
    made_pair = np.empty(num_gen + max_merges, dtype=np.int64)

    merge_left = np.empty(max_merges, dtype=np.int64)
    merge_right = np.empty(max_merges, dtype=np.int64)
    merge_count = np.empty(max_merges, dtype=np.int64)
    num_merges = 0
    while num_merges < max_merges and len(heap) > 0:
        negative_weight, a, b, merged = heapq.heappop(heap)
        if pairs[merged, _COUNT] < min_frequency:
            continue
        if pairs[merged, _WEIGHT] != -negative_weight:
            heapq.heappush(heap, (-pairs[merged, _WEIGHT], a, b, merged))
            continue
        new = num_gen + num_merges
        first[new] = first[a]
        last[new] = last[b]
        merge_left[num_merges] = a
        merge_right[num_merges] = b
        merge_count[num_merges] = pairs[merged, _COUNT]
        num_merges += 1

        pairs_before = num_pairs
        boundary = last[a]  # boundary i lies between levels i and i + 1
        node_read = pairs[merged, _HEAD]
        while node_read >= 0:
            item = nodes[node_read, _ITEM]
            node_read = nodes[node_read, _NEXT]
            if pair_of[item, boundary] != merged:
                continue
            pair_of[item, boundary] = -1
            for side in range(2):
                beside = first[new] - 1 if side == 0 else last[new]
                if beside < 0 or beside >= num_boundaries:
                    continue
                old = pairs[pair_of[item, beside]]
                old[_COUNT] -= 1
                old[_WEIGHT] -= weights[item]
                neighbour = old[_LEFT] if side == 0 else old[_RIGHT]
                if made_by[neighbour] != new:
                    made_by[neighbour] = new
                    made_pair[neighbour] = num_pairs
                    if num_pairs == len(pairs):
                        pairs = _doubled(pairs)
                    pairs[num_pairs, _LEFT] = neighbour if side == 0 else new
                    pairs[num_pairs, _RIGHT] = new if side == 0 else neighbour
                    pairs[num_pairs, _COUNT] = 0
                    pairs[num_pairs, _WEIGHT] = 0
                    pairs[num_pairs, _HEAD] = -1
                    num_pairs += 1
                fresh = pairs[made_pair[neighbour]]
                fresh[_COUNT] += 1
                fresh[_WEIGHT] += weights[item]
                pair_of[item, beside] = made_pair[neighbour]
                if node == len(nodes):
                    nodes = _doubled(nodes)
                nodes[node, _ITEM] = item
                nodes[node, _NEXT] = fresh[_HEAD]
                fresh[_HEAD] = node
                node += 1
        for p in range(pairs_before, num_pairs):
            if pairs[p, _COUNT] >= min_frequency:
                heapq.heappush(heap, (-pairs[p, _WEIGHT], pairs[p, _LEFT], pairs[p, _RIGHT], p))
    return merge_left[:num_merges], merge_right[:num_merges], merge_count[:num_merges]
