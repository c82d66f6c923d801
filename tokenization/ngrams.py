"""Fixed combinations of codes as tokens: prefixes (SEMID) and k-grams, beside BPE's learned ones.

Both are built from pairs as mem-tokens are, so that they are :class:`Merges` too and take the same
place in an artifact and in the model (TRM Table 5 compares the three).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenization.base import Codes, check_at_least
from tokenization.mem_tokens import Cover, Merges, check_weights
from tokenization.vocabulary import gen_row


@dataclass(frozen=True, kw_only=True)
class PrefixNGrams:
    """Tokens of an item: its first 2, 3, ... codes together (SEMID's prefix n-grams).

    Args:
        num_merges: most tokens; the most frequent prefixes are kept.
        min_frequency: fewest items that must share a prefix.
        min_length: codes of the shortest prefix; 1 where no gen-tokens stand beside (SEMID), so
            that the first code alone has a token too.
        max_length: codes of the longest prefix; None for all levels.
    """

    kind: ClassVar[str] = "prefix_ngrams"
    cover: ClassVar[Cover] = "tree"

    num_merges: int = 20_000_000
    min_frequency: int = 2
    min_length: Literal[1, 2] = 2
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Check counts."""
        _check(self.num_merges, self.min_frequency, self.min_length, self.max_length)

    def max_tokens(self, *, num_levels: int, num_codes: int) -> int:
        """All prefixes of the lengths asked for, or `num_merges` where these are fewer."""
        longest = min(self.max_length or num_levels, num_levels)
        prefixes = sum(num_codes**length for length in range(self.min_length, longest + 1))
        return min(self.num_merges, prefixes)

    def fit(
        self, codes: Codes, *, num_codes: int, weights: NDArray[np.integer] | None = None
    ) -> Merges:
        """Return the prefixes of codes `(N, L)`; `weights` as in `MemTokens.fit`."""
        return _fit(
            codes,
            num_codes,
            check_weights(weights, len(codes)),
            num_starts=1,
            min_length=self.min_length,
            max_length=self.max_length or codes.shape[1],
            num_merges=self.num_merges,
            min_frequency=self.min_frequency,
        )


@dataclass(frozen=True, kw_only=True)
class KGrams:
    """Tokens of an item: every run of `min_length` to `max_length` neighbouring codes.

    Args:
        num_merges: most tokens; the most frequent runs are kept.
        min_frequency: fewest items that must share a run.
        min_length: codes of the shortest run; 1 where no gen-tokens stand beside.
        max_length: codes of the longest run; 2 gives the bigrams.
    """

    kind: ClassVar[str] = "k_grams"
    cover: ClassVar[Cover] = "windows"

    num_merges: int = 20_000_000
    min_frequency: int = 2
    min_length: Literal[1, 2] = 2
    max_length: int = 2

    def __post_init__(self) -> None:
        """Check counts."""
        _check(self.num_merges, self.min_frequency, self.min_length, self.max_length)

    def max_tokens(self, *, num_levels: int, num_codes: int) -> int:
        """All runs of the lengths asked for, or `num_merges` where these are fewer."""
        longest = min(self.max_length, num_levels)
        runs = sum(
            (num_levels - length + 1) * num_codes**length
            for length in range(self.min_length, longest + 1)
        )
        return min(self.num_merges, runs)

    def fit(
        self, codes: Codes, *, num_codes: int, weights: NDArray[np.integer] | None = None
    ) -> Merges:
        """Return the runs of codes `(N, L)`; `weights` as in `MemTokens.fit`."""
        return _fit(
            codes,
            num_codes,
            check_weights(weights, len(codes)),
            num_starts=codes.shape[1],
            min_length=self.min_length,
            max_length=self.max_length,
            num_merges=self.num_merges,
            min_frequency=self.min_frequency,
        )


def _check(num_merges: int, min_frequency: int, min_length: int, max_length: int | None) -> None:
    check_at_least(num_merges, 0, name="num_merges")
    check_at_least(min_frequency, 2, name="min_frequency")
    if min_length not in (1, 2):
        raise ValueError(f"min_length: expected 1 or 2, found {min_length}")
    if max_length is not None:
        check_at_least(max_length, 2, name="max_length")


def _fit(
    codes: Codes,
    num_codes: int,
    weights: NDArray[np.int64],
    *,
    num_starts: int,
    min_length: int,
    max_length: int,
    num_merges: int,
    min_frequency: int,
) -> Merges:
    """Extend the runs that start at each of the first `num_starts` levels, one code at a time.

    Shorter runs come first; among runs of one length the heavier, then the smaller symbols. A run
    is at least as frequent as its extensions, so none is kept without the run that it extends.
    """
    rows_NL = gen_row(codes, num_codes)
    num_levels = rows_NL.shape[1]
    num_gen = num_levels * num_codes
    current_NL = rows_NL.copy()  # the symbol of the run that starts at each level, -1 for none
    made: list[NDArray[np.int64]] = []
    num_made = 0
    if min_length == 1:
        starts_NS = rows_NL[:, :num_starts]
        count = np.bincount(starts_NS.reshape(-1), minlength=num_gen)
        weight = np.bincount(
            starts_NS.reshape(-1),
            weights=np.repeat(weights, starts_NS.shape[1]),
            minlength=num_gen,
        )
        order = np.lexsort((np.arange(num_gen), -weight))
        kept = order[count[order] >= min_frequency][:num_merges]
        made.append(np.stack([kept, kept, count[kept]]))
        num_made = len(kept)
    for length in range(2, min(max_length, num_levels) + 1):
        left_NS = current_NL[:, : min(num_starts, num_levels - length + 1)]
        right_NS = rows_NL[:, length - 1 : length - 1 + left_NS.shape[1]]
        alive_NS = left_NS >= 0
        keys = left_NS[alive_NS] * num_gen + right_NS[alive_NS]
        pairs, pair_of, count = np.unique(keys, return_inverse=True, return_counts=True)
        items = np.nonzero(alive_NS)[0]
        weight = np.bincount(pair_of, weights=weights[items], minlength=len(pairs))
        order = np.lexsort((pairs, -weight))
        kept = order[count[order] >= min_frequency][: num_merges - num_made]
        symbol = np.full(len(pairs), -1, dtype=np.int64)
        symbol[kept] = num_gen + num_made + np.arange(len(kept))
        made.append(np.stack([pairs[kept] // num_gen, pairs[kept] % num_gen, count[kept]]))
        num_made += len(kept)
        longer_NS = np.full(left_NS.shape, -1, dtype=np.int64)
        longer_NS[alive_NS] = symbol[pair_of]
        current_NL = longer_NS
    left, right, count = np.concatenate([*made, np.zeros((3, 0), dtype=np.int64)], axis=1)
    return Merges(left=left, right=right, count=count, num_levels=num_levels, num_codes=num_codes)
