"""Beam search in which a prefix's score is its own, not a sum over levels (DIG Eq. 16).

All rows are searched together, and of each beam the children that exist are scored, not all K.

Legend: R rows, W beams of a row, C candidates of the row that has most, L levels, K codes.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from trainer.generation import TupleTrie

State = TypeVar("State")


class PrefixScorer(Protocol[State]):
    """Scores prefixes one code longer than those of the level before.

    `State` is what the scorer keeps of prefixes: any tensors with leading dimensions (R, W).
    """

    def start(self) -> State:
        """The empty prefix of each row, leading dimensions (R, 1)."""
        ...

    def score(self, level: int, state: State, parent_RC: Tensor, code_RC: Tensor) -> Tensor:
        """Scores (R, C) of prefixes that go on from others.

        Args:
            level: of the codes.
            state: of the prefixes of the level before.
            parent_RC: int64, which of these each goes on from.
            code_RC: int64.
        """
        ...

    def advance(
        self, level: int, state: State, parent_RW: Tensor, code_RW: Tensor, score_RW: Tensor
    ) -> State:
        """The state of those that are kept, with their scores; arguments as of `score`."""
        ...


class FoundPrefixes(NamedTuple, Generic[State]):
    """The best full SIDs of each row, best first.

    Attributes:
        codes_RWL: int64.
        scores_RW: -inf marks places that no SID was left for.
        leaf_RW: int64 nodes of the trie's last level; -1 in a free search.
        state: of the scorer.
    """

    codes_RWL: Tensor
    scores_RW: Tensor
    leaf_RW: Tensor
    state: State


@torch.no_grad()
def prefix_search(
    scorer: PrefixScorer[State],
    *,
    num_rows: int,
    num_levels: int,
    num_codes: int,
    width: int,
    trie: TupleTrie | None,
    device: torch.device,
) -> FoundPrefixes[State]:
    """The `width` SIDs of each row with the highest scores, as far as beams reach.

    Args:
        scorer: of prefixes.
        num_rows: R.
        num_levels: L.
        num_codes: K.
        width: beams that are kept after each level; as many as there are prefixes is exhaustive.
        trie: SIDs that exist; None searches all K^L.
        device: of the search.

    Raises:
        ValueError: when `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"beam search: width is {width}, expected at least 1")
    state = scorer.start()
    node_RW = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
    alive_RW = torch.ones_like(node_RW, dtype=torch.bool)
    codes_RWL = node_RW.new_zeros(num_rows, 1, 0)
    scores_RW = torch.zeros(num_rows, 1, device=device)
    for level in range(num_levels):
        parent_RC, code_RC, child_RC, exists_RC = _children(
            level, node_RW, alive_RW, trie, num_codes
        )
        score_RC = scorer.score(level, state, parent_RC, code_RC).float()
        score_RC = score_RC.masked_fill(~exists_RC, float("-inf"))
        scores_RW, best_RW = score_RC.topk(min(width, score_RC.shape[1]), dim=1)
        parent_RW, code_RW = parent_RC.gather(1, best_RW), code_RC.gather(1, best_RW)
        codes_RWL = torch.cat(
            [
                codes_RWL.gather(1, parent_RW.unsqueeze(2).expand(-1, -1, level)),
                code_RW.unsqueeze(2),
            ],
            dim=2,
        )
        state = scorer.advance(level, state, parent_RW, code_RW, scores_RW)
        node_RW, alive_RW = child_RC.gather(1, best_RW), exists_RC.gather(1, best_RW)
    return FoundPrefixes(codes_RWL, scores_RW, node_RW, state)


def existing_leaves(found: FoundPrefixes[State], trie: TupleTrie) -> tuple[Tensor, Tensor]:
    """Where the SIDs of a free search stand in a trie.

    Returns:
        (R, W): nodes of the trie's last level, and whether each SID exists.
    """
    exists_RW = found.scores_RW > float("-inf")
    node_RW = torch.zeros_like(found.codes_RWL[..., 0])
    for level, code_RW in enumerate(found.codes_RWL.unbind(dim=2)):
        node_RW, is_there_RW = trie.find(level, node_RW, code_RW)
        exists_RW = exists_RW & is_there_RW
    return node_RW, exists_RW


def _children(
    level: int, node_RW: Tensor, alive_RW: Tensor, trie: TupleTrie | None, num_codes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every prefix that goes on from a row's beams, padded to the row that has most.

    Returns:
        (R, C): the beam, the code, the node, and whether there is such a prefix.
    """
    num_rows, num_beams = node_RW.shape
    device = node_RW.device
    if trie is None:
        code_C = torch.arange(num_codes, device=device).repeat(num_beams)
        beam_C = torch.arange(num_beams, device=device).repeat_interleave(num_codes)
        shape = (num_rows, num_beams * num_codes)
        none = node_RW.new_full(shape, -1)
        return beam_C.expand(shape), code_C.expand(shape), none, alive_RW[:, beam_C]
    place_M = alive_RW.flatten().nonzero().squeeze(1)
    of, code, child = trie.children(level, node_RW.flatten()[place_M])
    row, beam = place_M[of] // num_beams, place_M[of] % num_beams
    number_R = torch.bincount(row, minlength=num_rows)
    column = torch.arange(len(row), device=device) - (number_R.cumsum(0) - number_R)[row]
    shape = (num_rows, int(number_R.max()))
    padded = []
    for values in (beam, code, child, torch.ones_like(row)):
        full = node_RW.new_zeros(shape)
        full[row, column] = values
        padded.append(full)
    return padded[0], padded[1], padded[2], padded[3].bool()
