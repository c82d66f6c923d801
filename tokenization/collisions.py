"""Items that share all their codes: told apart, where that is wanted.

`keep` leaves them: items that share their codes share their embedding, which is what a ranking
model's generalization lives on. `extra_code` appends a level that numbers the items of a tuple
(TIGER). `next_nearest` moves all but the first item of a tuple to the nearest last-level codeword
whose tuple is free (as generative retrieval does that can't afford another level).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tokenization.base import Codes, SemanticTokenizer

Collisions = Literal["keep", "extra_code", "next_nearest"]
"""What becomes of items with equal codes."""

_BLOCK = 4096  # items whose candidates are looked at together


def resolve_collisions(
    codes: Codes,
    embeddings: NDArray[np.floating],
    tokenizer: SemanticTokenizer,
    *,
    how: Collisions,
    taken: Codes | None = None,
) -> Codes:
    """Return codes that differ between items.

    Args:
        codes: int32 `(N, L)`, as encoded.
        embeddings: floating `(N, D)` of the same items, looked at by `next_nearest` alone.
        tokenizer: that encoded them.
        how: see the module.
        taken: codes that items from before have and keep, int32 `(M, L)`, or `(M, L + 1)` under
            `extra_code`.

    Returns:
        int32 `(N, L)`, or `(N, L + 1)` under `extra_code`. Under `next_nearest` items stay together
        where all K codewords of their prefix are taken.

    Raises:
        ValueError: under `extra_code`, a tuple with more items than there are codes.
    """
    if how == "keep":
        return codes
    if how == "extra_code":
        return _extra_code(codes, tokenizer.num_codes, taken)
    return _next_nearest(codes, embeddings, tokenizer, taken)


def _extra_code(codes: Codes, num_codes: int, taken: Codes | None) -> Codes:
    before = taken[:, :-1] if taken is not None else codes[:0]
    both = np.concatenate([before, codes])
    tuple_of = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
    old, new = tuple_of[: len(before)], tuple_of[len(before) :]
    first_free = np.zeros(tuple_of.max(initial=-1) + 1, dtype=np.int64)
    if taken is not None:
        np.maximum.at(first_free, old, taken[:, -1].astype(np.int64) + 1)
    order = np.argsort(new, kind="stable")
    ordered = new[order]
    rank = np.empty(len(new), dtype=np.int64)
    rank[order] = np.arange(len(new)) - np.searchsorted(ordered, ordered)
    extra = rank + first_free[new]
    if extra.size and extra.max() >= num_codes:
        worst = int(extra.argmax())
        raise ValueError(
            f"collisions: {extra[worst] + 1} items share the codes {codes[worst].tolist()}, but an "
            f"extra level has {num_codes} codes; use more levels or codes, or keep collisions"
        )
    return np.column_stack([codes, extra]).astype(np.int32)


def _next_nearest(
    codes: Codes,
    embeddings: NDArray[np.floating],
    tokenizer: SemanticTokenizer,
    taken: Codes | None,
) -> Codes:
    num_codes = tokenizer.num_codes
    before = taken if taken is not None else codes[:0]
    both = np.concatenate([before, codes])
    prefix = np.unique(both[:, :-1], axis=0, return_inverse=True)[1].reshape(-1)
    keys = prefix.astype(np.int64) * num_codes + both[:, -1]
    _, first = np.unique(keys, return_index=True)
    waiting = np.ones(len(keys), dtype=bool)
    waiting[first] = False
    waiting[: len(before)] = False
    used = set(keys[first].tolist())
    resolved = codes.copy()
    rows = np.flatnonzero(waiting) - len(before)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        distances = tokenizer.last_level_distances(embeddings[block], codes[block])
        ranked = np.argsort(distances, axis=1, kind="stable")
        bases = prefix[block + len(before)].astype(np.int64) * num_codes
        for row, base, candidates in zip(block, bases.tolist(), ranked.tolist(), strict=True):
            for candidate in candidates:
                if base + candidate not in used:
                    used.add(base + candidate)
                    resolved[row, -1] = candidate
                    break
    return resolved
