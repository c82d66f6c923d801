"""Retrieval with a DIG ranker: beam search over SIDs, then ranking of what the index holds.

Legend: R requests, W beams, C candidates of the request that has most, N items, L levels, D item
dim, E width of e_u, F width of cross features (d_c).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from trainer.batch import Batch
from trainer.dig_scorer import DigScorer, PrefixState
from trainer.item_index import ItemIndex
from trainer.models.dig import DigNetwork, Encoded
from trainer.modules.learned_tokens import ITEM_ROW
from trainer.modules.request_encoder import Request
from trainer.modules.user_to_token import prefix_means
from trainer.prefix_search import FoundPrefixes, existing_leaves, prefix_search

_MAIN_TASK = 0


class CrossSource(Protocol):
    """Full cross features of pairs, where they are known."""

    def of(self, request_M: Tensor, item_row_M: Tensor) -> tuple[Tensor, Tensor]:
        """Cross features (M, F) as the network encodes them, and whether each pair is known."""
        ...


@dataclass(frozen=True)
class Retrieved:
    """Items of each request, padded to the request that has most.

    Attributes:
        item_RC: int64 rows of items.parquet; -1 where there is none.
        rank_RC: probabilities by the ranker (Eq. 17).
        recall_RC: probabilities of the items' SIDs (Eq. 16); -1 where there is no item.
    """

    item_RC: Tensor
    rank_RC: Tensor
    recall_RC: Tensor

    def best(self, number: int, by: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Items, their rank and recall scores (R, up to `number`), best first in `by` (R, C)."""
        by = by.masked_fill(self.item_RC < 0, float("-inf"))
        best_RN = by.argsort(dim=1, descending=True, stable=True)[:, :number]
        return (
            self.item_RC.gather(1, best_RN),
            self.rank_RC.gather(1, best_RN),
            self.recall_RC.gather(1, best_RN),
        )


class DigRetriever:
    """Beam search and ranking over one index.

    Args:
        network: trained; set to evaluation.
        index: items by SID.
        item_rows: int64 (N,), row of items.parquet of each item of the index.
        width: beams.
        free: search all K^L SIDs and keep those that exist, in place of existing prefixes alone.
    """

    def __init__(
        self,
        network: DigNetwork,
        index: ItemIndex,
        item_rows: NDArray[np.int64],
        *,
        width: int,
        free: bool = False,
    ) -> None:
        self.network = network.eval()
        self.index = index
        self.width = width
        self.free = free
        self.e_ND = network.encode_catalogue()
        self._trie = index.trie(self.e_ND.device)
        self._item_row = torch.from_numpy(item_rows).to(self.e_ND.device)

    @torch.no_grad()
    def request(self, batch: Batch, pooled: KeyedTensor) -> Request:
        """Type II of a batch's impressions."""
        with self.network.autocast(batch.dense_BF.device):
            return self.network.request(batch, pooled, self._encoded(batch))

    @torch.no_grad()
    def score(
        self,
        batch: Batch,
        pooled: KeyedTensor,
        items: dict[str, JaggedTensor],
        request: Request,
    ) -> tuple[Tensor, Tensor]:
        """Logits of both paths for each impression's own item, (B,) and (B,).

        The ranking path's (Eq. 6), and the retrieval path's by the item's full SID (Eq. 16); set
        against each other they give the gap of the paper's Table 4.
        """
        network, encoded = self.network, self._encoded(batch)
        place_B = encoded.place_U.index_select(0, batch.candidate_B)
        with network.autocast(batch.dense_BF.device):
            e_BD = encoded.e_XD.index_select(0, place_B)
            cross_BC = network.cross(batch, pooled)
            rank = network.rank(request, e_BD.unsqueeze(1), cross_BC.unsqueeze(1))
            codes_BL = network.quantizer(e_BD).codes_ML
            prefix_BLD = network.prefixes(network.sid_table(items), codes_BL)
            u2t_BLC = prefix_means(network.token_cross(request.user_BE, prefix_BLD, codes_BL))
            recall = network.recall(request, prefix_BLD[:, -1:], u2t_BLC[:, -1:])
        return rank[:, 0, _MAIN_TASK], recall[:, 0, _MAIN_TASK]

    def _encoded(self, batch: Batch) -> Encoded:
        """The batch's items, as the catalogue's are encoded already."""
        row_U = batch.items[ITEM_ROW].values()
        place_U = torch.arange(len(row_U), device=row_U.device)
        none_BN = place_U.new_zeros(batch.batch_size, 0)
        return Encoded(row_U, self.e_ND.index_select(0, row_U), place_U, none_BN)

    @torch.no_grad()
    def search(
        self, request: Request, items: dict[str, JaggedTensor]
    ) -> FoundPrefixes[PrefixState]:
        """The best SIDs of each request."""
        item = self.network.config.item
        sid_LKD = self.network.sid_table(items)
        with self.network.autocast(request.user_BE.device):
            scorer = DigScorer(self.network, request, sid_LKD, task=_MAIN_TASK)
            return prefix_search(
                scorer,
                num_rows=len(request.user_BE),
                num_levels=item.num_levels,
                num_codes=item.num_codes,
                width=self.width,
                trie=None if self.free else self._trie,
                device=request.user_BE.device,
            )

    @torch.no_grad()
    def retrieve(
        self,
        request: Request,
        items: dict[str, JaggedTensor],
        cross: CrossSource | None = None,
        first_request: int = 0,
    ) -> Retrieved:
        """The items of the best SIDs, ranked with full cross features.

        Args:
            request: whom to retrieve for.
            items: every row of the SID embeddings, by feature.
            cross: cross features of pairs; a pair that it does not know is ranked with what
                MLP_u2t predicts for the item's SID.
            first_request: number of the first request, as `cross` counts them.
        """
        found = self.search(request, items)
        leaf_RW, exists_RW = found.leaf_RW, found.scores_RW > float("-inf")
        if self.free:
            leaf_RW, exists_RW = existing_leaves(found, self._trie)
        beam_M = exists_RW.flatten().nonzero().squeeze(1)
        of, position = self.index.positions(leaf_RW.flatten()[beam_M])
        beam = beam_M[of]
        num_rows, num_beams = leaf_RW.shape
        row = beam // num_beams
        number_R = torch.bincount(row, minlength=num_rows)
        column = torch.arange(len(row), device=row.device)
        column = column - (number_R.cumsum(0) - number_R)[row]
        shape = (num_rows, max(1, int(number_R.max())))
        item_M = self._item_row[position]
        item_RC = item_M.new_full(shape, -1)
        item_RC[row, column] = item_M
        cross_MF = found.state.u2t_RWF.flatten(0, 1)[beam] / self.network.config.item.num_levels
        if cross is not None:
            known_MF, is_known = cross.of(row + first_request, item_M)
            cross_MF = torch.where(is_known.unsqueeze(1), known_MF, cross_MF)
        cross_RCF = cross_MF.new_zeros(*shape, cross_MF.shape[1])
        cross_RCF[row, column] = cross_MF
        recall_RC = torch.full(shape, -1.0, device=row.device)
        recall_RC[row, column] = found.scores_RW.flatten()[beam].sigmoid()
        with self.network.autocast(row.device):
            e_RCD = self.e_ND[item_RC.clamp_min(0)]
            logits_RC = self.network.rank(request, e_RCD, cross_RCF)[..., _MAIN_TASK]
        return Retrieved(item_RC, logits_RC.sigmoid(), recall_RC)


def build_index(network: DigNetwork, item_ids: NDArray[np.int64]) -> ItemIndex:
    """The index of the catalogue that a network knows.

    Args:
        network: trained.
        item_ids: ids in the catalogue's order.
    """
    codes = network.catalogue_codes().cpu().numpy().astype(np.int32)
    return ItemIndex(item_ids, codes, network.config.item.num_codes, tokens_fingerprint(network))


def tokens_fingerprint(network: DigNetwork) -> str:
    """SHA-256 over encoder and codebooks: what decides an item's SID."""
    digest = hashlib.sha256()
    tensors = {**network.encoder.state_dict(), "codebooks": network.quantizer.codebooks_LKD}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
