"""What a beam search scores prefixes with: DIG's own Mixer and MLP_u2t (Eq. 16).

Legend: R requests, C candidates of the request that has most, W beams, L levels, K codes, D item
dim, E width of e_u, F width of cross features (d_c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from trainer.models.dig import DigNetwork
from trainer.models.request_mixer import RequestMixer
from trainer.modules.request_encoder import Request

_SCORED = 8192  # prefixes at a time: few enough to stay in a processor's caches between layers


class PrefixState(NamedTuple):
    """What the search keeps of prefixes.

    Attributes:
        prefix_RWD: e_sid^(1:l).
        u2t_RWF: sum of the predicted u2t^(1) to u2t^(l).
    """

    prefix_RWD: Tensor
    u2t_RWF: Tensor


class DigScorer:
    """Scores prefixes with the shared Mixer and MLP_u2t.

    Args:
        network: in evaluation mode.
        request: whom to retrieve for.
        sid_LKD: SID embeddings.
        task: whose logits are the scores.
    """

    def __init__(
        self, network: DigNetwork, request: Request, sid_LKD: Tensor, *, task: int
    ) -> None:
        self._token_cross = network.token_cross
        self._user_R1E = request.user_BE.unsqueeze(1)
        self._sid_LKD = sid_LKD
        self._cross_dim = network.cross_dim
        self._mixer = RequestMixer(network, request, task=task)

    def start(self) -> PrefixState:
        """The empty prefix of each request."""
        shape = (len(self._user_R1E), 1)
        return PrefixState(
            self._sid_LKD.new_zeros(*shape, self._sid_LKD.shape[2]),
            self._sid_LKD.new_zeros(*shape, self._cross_dim),
        )

    def score(self, level: int, state: PrefixState, parent_RC: Tensor, code_RC: Tensor) -> Tensor:
        """Logits of longer prefixes, of some requests and some of their prefixes at a time."""
        num_rows, num_candidates = code_RC.shape
        score_RC = self._sid_LKD.new_empty(num_rows, num_candidates)
        for rows in _parts(num_rows, max(1, _SCORED // max(1, num_candidates))):
            for some in _parts(num_candidates, _SCORED):
                at = (rows, some)
                prefix, u2t = self._longer(level, state, rows, parent_RC[at], code_RC[at])
                score_RC[at] = self._mixer.recall(prefix, u2t / (level + 1), rows)
        return score_RC

    def advance(
        self,
        level: int,
        state: PrefixState,
        parent_RW: Tensor,
        code_RW: Tensor,
        score_RW: Tensor,
    ) -> PrefixState:
        """The state of longer prefixes; that of all candidates would be hundreds of times it."""
        return self._longer(level, state, slice(None), parent_RW, code_RW)

    def _longer(
        self, level: int, state: PrefixState, rows: slice, parent_RC: Tensor, code_RC: Tensor
    ) -> PrefixState:
        before_RWD, u2t_RWF = (value[rows] for value in state)
        at_RC = parent_RC + before_RWD.shape[1] * torch.arange(
            len(parent_RC), device=parent_RC.device
        ).unsqueeze(1)
        prefix_RCD = embedding(at_RC, before_RWD.flatten(0, 1))
        prefix_RCD += embedding(code_RC, self._sid_LKD[level])
        said_RCF = self._token_cross.level(level, self._user_R1E[rows], prefix_RCD, code_RC)
        return PrefixState(prefix_RCD, embedding(at_RC, u2t_RWF.flatten(0, 1)) + said_RCF)


def _parts(number: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, number)) for start in range(0, number, size))
