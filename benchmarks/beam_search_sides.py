"""What `beam_search.py` sets against each other: DIG's search, and the loop one writes first.

Legend: R users, W beams, L levels, K codes, D item dim.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sharding.tables import TableSpec
from trainer.dig_scorer import DigScorer
from trainer.generation import TupleTrie
from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dig import DigNetwork
from trainer.models.dig_config import DigModelConfig
from trainer.modules.learned_tokens import LearnedTokensConfig, StaticField
from trainer.modules.next_token import ContextRoles
from trainer.modules.request_encoder import Request
from trainer.modules.target_attention import Past
from trainer.prefix_search import existing_leaves, prefix_search


def network_of(num_levels: int, num_codes: int) -> DigNetwork:
    """Four fields and d = 64 as in the paper; six dense features, two of them cross."""
    item = LearnedTokensConfig(
        fields=tuple(StaticField(name=f"field_{number}", rows=10) for number in range(4)),
        num_levels=num_levels,
        num_codes=num_codes,
    )
    names = ("user_id", "hour")
    tables = [
        TableSpec(name=name, rows=100, dim=32, features=(name,), role="side") for name in names
    ]
    roles = ContextRoles(
        query_features=("hour",),
        user_features=("user_id",),
        query_dense=(),
        user_dense=(0, 1, 2, 3),
        tasks=("click",),
    )
    network = DigNetwork(
        DigModelConfig(item=item, tower=DCNMoEConfig()),
        tables=tables,
        num_dense=6,
        num_tasks=1,
        num_histories=1,
        roles=roles,
    )
    return network.eval()


def request_of(network: DigNetwork, *, users: int, history: int) -> Request:
    """Random users with histories of one length."""
    dim = network.config.item.dim
    shape = (users, history)
    past = Past(torch.randn(*shape, dim), torch.randn(*shape, dim), torch.ones(shape).bool())
    return Request(torch.randn(users, network.user_dim), past)


class CountedTrie(TupleTrie):
    """Counts the prefixes that searches ask for.

    Args:
        codes: int (N, L).
        num_codes: K.
    """

    def __init__(self, codes: np.ndarray, *, num_codes: int) -> None:
        super().__init__(codes, num_codes=num_codes)
        self.asked = 0

    def children(self, level: int, node_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the trie's."""
        found = super().children(level, node_M)
        self.asked += len(found[0])
        return found


class Searcher:
    """One network and catalogue.

    Args:
        network: in evaluation mode.
        sid_LKD: SID embeddings.
        codes: int (N, L), of the catalogue.
        width: beams.
        free: score all K codes after each beam, in place of those that exist.
    """

    def __init__(
        self,
        network: DigNetwork,
        sid_LKD: Tensor,
        codes: np.ndarray,
        *,
        width: int,
        free: bool = False,
    ) -> None:
        self.network, self.sid_LKD, self.width, self.free = network, sid_LKD, width, free
        self.item = network.config.item
        self.trie = CountedTrie(codes.astype(np.int64), num_codes=self.item.num_codes)

    def batched(self, request: Request) -> tuple[Tensor, Tensor]:
        """SIDs and scores of all users together; a free search's are looked up in the index."""
        found = prefix_search(
            DigScorer(self.network, request, self.sid_LKD, task=0),
            num_rows=len(request.user_BE),
            num_levels=self.item.num_levels,
            num_codes=self.item.num_codes,
            width=self.width,
            trie=None if self.free else self.trie,
            device=request.user_BE.device,
        )
        if self.free:
            existing_leaves(found, self.trie)
        return found.codes_RWL, found.scores_RW

    @property
    def most(self) -> int:
        """Prefixes that a user's search scores when every prefix has all K children."""
        beams, scored = 1, 0
        for _ in range(self.item.num_levels):
            scored += beams * self.item.num_codes
            beams = min(self.width, beams * self.item.num_codes)
        return scored

    def scored(self, request: Request) -> float:
        """Prefixes that a user's search scores."""
        if self.free:
            return self.most
        self.trie.asked = 0
        self.batched(request)
        return self.trie.asked / len(request.user_BE)

    def one_by_one(self, request: Request) -> list[Tensor]:
        """The same of each user alone."""
        users = torch.arange(len(request.user_BE)).split(1)
        return [self.batched(request.take(user))[0] for user in users]

    @torch.no_grad()
    def loop(self, request: Request) -> list[list[tuple[int, ...]]]:
        """SIDs of each user, beam by beam, with nothing batched but a beam's children."""
        return [
            self._one(request.take(torch.tensor([user]))) for user in range(len(request.user_BE))
        ]

    def _one(self, request: Request) -> list[tuple[int, ...]]:
        """One user's search."""
        zeros = torch.zeros(self.item.dim), torch.zeros(self.network.cross_dim)
        beams = [((), 0, *zeros)]
        for level in range(self.item.num_levels):
            longer = []
            for codes, node, prefix, u2t in beams:
                _, code, child = self.trie.children(level, torch.tensor([node]))
                prefixes = prefix + self.sid_LKD[level][code]
                said = self.network.token_cross.level(level, request.user_BE, prefixes, code)
                total = u2t + said
                logits = self.network.recall(request, prefixes[None], total[None] / (level + 1))
                longer += [
                    (score, (*codes, number), node_of, prefixes[at], total[at])
                    for at, (score, number, node_of) in enumerate(
                        zip(logits[0, :, 0].tolist(), code.tolist(), child.tolist(), strict=True)
                    )
                ]
            longer.sort(key=lambda one: -one[0])
            beams = [one[1:] for one in longer[: self.width]]
        return [codes for codes, *_ in beams]


def check_exact(network: DigNetwork, sid_LKD: Tensor, request: Request, *, seed: int) -> int:
    """With as many beams as prefixes, the search must find what scoring every SID finds.

    Returns:
        number of SIDs.
    """
    num_levels, num_codes, _ = sid_LKD.shape
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, num_codes, (300, num_levels))
    distinct = torch.from_numpy(np.unique(codes, axis=0))
    found, scores = Searcher(network, sid_LKD, codes, width=len(distinct)).batched(request)
    users = len(request.user_BE)
    with torch.no_grad():
        prefix = network.prefixes(sid_LKD, distinct).expand(users, -1, -1, -1)
        said = network.token_cross(request.user_BE[:, None], prefix, distinct).mean(dim=2)
        every = network.recall(request, prefix[:, :, -1], said)[..., 0]
    expected, order = every.sort(dim=1, descending=True)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    for row in range(users):
        _same(found[row, :10], distinct[order[row, :10]])
    return len(distinct)


def check_as_loop(searcher: Searcher, request: Request) -> None:
    """Both sides must end in the same SIDs."""
    found, _ = searcher.batched(request)
    for row, expected in enumerate(searcher.loop(request)):
        _same(found[row], torch.tensor(expected))


def _same(one_ML: Tensor, other_ML: Tensor) -> None:
    mine, others = ({tuple(sid) for sid in side.tolist()} for side in (one_ML, other_ML))
    if len(mine & others) < len(others) - 1:  # the last may tie
        raise AssertionError(f"beam search found {mine}, expected {others}")
