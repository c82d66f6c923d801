"""Beam search over token tuples, free or held to the tuples that exist.

What scores the tokens is the caller's: a next-token transformer, or a ranker that scores the codes
of a level. Everything is batched over rows and beams.

Legend: R rows, W beams of a row, L levels, K codes of a level, N tuples, E nodes of a trie's level.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class TokenScorer(Protocol):
    """Scores the codes of one level after the other, for the beams that are alive."""

    def first(self) -> Tensor:
        """Log-probabilities (or other scores that add up) of level 0's codes, (R, K)."""
        ...

    def following(self, parent_RW: Tensor, code_RW: Tensor) -> Tensor:
        """Those of the next level's codes for each new beam, (R, W, K).

        Args:
            parent_RW: int64, the beam of the step before that each new beam goes on from.
            code_RW: int64, the code that it goes on with.
        """
        ...


class Beams(NamedTuple):
    """The best tuples of each row, best first.

    Attributes:
        codes_RWL: int64.
        scores_RW: sums over levels; -inf marks places that no tuple was left for.
    """

    codes_RWL: Tensor
    scores_RW: Tensor


class TupleTrie:
    """The tuples that exist, as a tree of prefixes in flat arrays.

    A node of level l is a distinct prefix of l + 1 codes, numbered in lexicographic order, so the
    children of a node stand side by side.

    Args:
        codes: int (N, L), in any order, repeated or not.
        num_codes: K.
        device: where beams are searched.

    Raises:
        ValueError: without a tuple.

    Example::

        trie = TupleTrie(np.array([[0, 1], [0, 2], [3, 0]]), num_codes=4)
        trie.num_nodes  # [2, 3]
    """

    def __init__(
        self, codes: NDArray[np.integer], *, num_codes: int, device: torch.device | None = None
    ) -> None:
        if len(codes) == 0:
            raise ValueError("trie: no tuple to generate; expected at least one item with tokens")
        distinct = np.unique(codes, axis=0).astype(np.int64)
        differs = distinct[1:] != distinct[:-1]
        first_difference = np.concatenate([[0], differs.argmax(axis=1)])
        self.num_codes = num_codes
        self.num_nodes: list[int] = []
        self._code: list[Tensor] = []
        self._key: list[Tensor] = []
        self._first_child: list[Tensor] = []
        parent = np.zeros(len(distinct), dtype=np.int64)
        for level in range(distinct.shape[1]):
            is_new = first_difference <= level
            code_E, parent_E = distinct[is_new, level], parent[is_new]
            num_parents = self.num_nodes[-1] if self.num_nodes else 1
            first_child = np.searchsorted(parent_E, np.arange(num_parents + 1))
            self.num_nodes.append(len(code_E))
            self._code.append(torch.from_numpy(code_E).to(device))
            self._key.append(torch.from_numpy(parent_E * num_codes + code_E).to(device))
            self._first_child.append(torch.from_numpy(first_child).to(device))
            parent = np.cumsum(is_new) - 1

    def allowed(self, level: int, node_RW: Tensor) -> Tensor:
        """Whether each code of `level` may follow each node of the level before, bool (R, W, K).

        Args:
            level: of the codes; before level 0 there is one node, 0.
            node_RW: int64.
        """
        node = node_RW.flatten()
        first, last = self._first_child[level][node], self._first_child[level][node + 1]
        number = last - first
        at_beam = torch.repeat_interleave(torch.arange(len(node), device=node.device), number)
        start = number.cumsum(0) - number
        child = torch.arange(len(at_beam), device=node.device) + (first - start)[at_beam]
        mask = torch.zeros(len(node), self.num_codes, dtype=torch.bool, device=node.device)
        mask[at_beam, self._code[level][child]] = True
        return mask.view(*node_RW.shape, self.num_codes)

    def children(self, level: int, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The prefixes that go on from each of M nodes of the level before, all side by side.

        Args:
            level: of the codes that follow; before level 0 there is one node, 0.
            node_M: int64.

        Returns:
            For each child, int64: which of the M nodes it is of, its code, its own node.
        """
        first, last = self._first_child[level][node_M], self._first_child[level][node_M + 1]
        number = last - first
        of = torch.repeat_interleave(torch.arange(len(node_M), device=node_M.device), number)
        start = number.cumsum(0) - number
        child = torch.arange(len(of), device=node_M.device) + (first - start)[of]
        return of, self._code[level][child], child

    def child(self, level: int, node_RW: Tensor, code_RW: Tensor) -> Tensor:
        """The node that each node goes to with a code of `level`; any node where there is none."""
        key = node_RW * self.num_codes + code_RW
        found = torch.searchsorted(self._key[level], key)
        return found.clamp_max(self.num_nodes[level] - 1)

    def find(self, level: int, node_RW: Tensor, code_RW: Tensor) -> tuple[Tensor, Tensor]:
        """`child`, and whether there is such a child, bool (R, W)."""
        found = self.child(level, node_RW, code_RW)
        return found, self._key[level][found] == node_RW * self.num_codes + code_RW


@torch.no_grad()
def beam_search(
    scorer: TokenScorer, *, num_levels: int, width: int, trie: TupleTrie | None = None
) -> Beams:
    """The `width` tuples of each row with the highest sums of scores, as far as beams reach.

    Args:
        scorer: of codes.
        num_levels: L.
        width: beams that are kept after each level; as many as there are tuples is exhaustive.
        trie: tuples that may be generated; None for all K^L.

    Raises:
        ValueError: when `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"beam search: width is {width}, expected at least 1")
    scores_RWK = scorer.first().unsqueeze(1).float()
    num_rows, _, num_codes = scores_RWK.shape
    total_RW = scores_RWK.new_zeros(num_rows, 1)
    node_RW = torch.zeros_like(total_RW, dtype=torch.int64)
    codes_RWL = node_RW.new_zeros(num_rows, 1, 0)
    for level in range(num_levels):
        scores_RWK = scores_RWK + total_RW.unsqueeze(2)
        if trie is not None:
            scores_RWK = scores_RWK.masked_fill(~trie.allowed(level, node_RW), float("-inf"))
        flat_RC = scores_RWK.flatten(1)
        total_RW, best_RW = flat_RC.topk(min(width, flat_RC.shape[1]), dim=1)
        parent_RW, code_RW = best_RW // num_codes, best_RW % num_codes
        codes_RWL = torch.cat(
            [
                codes_RWL.gather(1, parent_RW.unsqueeze(2).expand(-1, -1, level)),
                code_RW.unsqueeze(2),
            ],
            dim=2,
        )
        if trie is not None:
            node_RW = trie.child(level, node_RW.gather(1, parent_RW), code_RW)
        if level + 1 < num_levels:
            scores_RWK = scorer.following(parent_RW, code_RW).float()
    return Beams(codes_RWL, total_RW)
