"""Residual quantization with codebooks that follow moving averages (DIG section 3.2).

Legend: M vectors, L levels, K codes, D dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenization.balanced_kmeans import BalancedRQKMeans
from trainer.modules.over_ranks import num_ranks, own_rank, rows_of_all_ranks, sum_over_ranks

_ROUNDING = 2e-6  # of a score's terms, as in `tokenization.residual`


class Quantized(NamedTuple):
    """What the walk finds of each vector.

    Attributes:
        codes_ML: int64 (Eq. 2).
        residual_MLD: r_0 to r_{L-1}, what enters each level (Eq. 3); carries the gradient of r_0.
        codeword_MLD: the codewords that were taken, without gradient.
    """

    codes_ML: Tensor
    residual_MLD: Tensor
    codeword_MLD: Tensor

    def commitment(self) -> Tensor:
        """Each vector's term of L_commit (M,), Eq. 11."""
        return (self.codeword_MLD - self.residual_MLD).square().sum(dim=(1, 2))

    def reconstruction(self) -> Tensor:
        """Each vector's term of L_sem (M,), Eq. 12."""
        return (self.residual_MLD[:, 0] - self.codeword_MLD.sum(dim=1)).square().sum(dim=1)


class ResidualQuantizer(nn.Module):
    """Codebooks that address items and take no part in scoring; no gradient reaches them.

    After a step every codeword that vectors were assigned to moves toward their mean,
    `c <- alpha c + (1 - alpha) mean`, over the vectors of all ranks. A codeword without vectors for
    `dead_after` steps starts anew at the vector that its level describes worst.

    Args:
        num_levels: L.
        num_codes: K.
        dim: D.
        decay: alpha.
        dead_after: steps.
    """

    codebooks_LKD: Tensor
    idle_LK: Tensor
    is_started: Tensor

    def __init__(
        self, *, num_levels: int, num_codes: int, dim: int, decay: float, dead_after: int
    ) -> None:
        super().__init__()
        self.decay = decay
        self.dead_after = dead_after
        self.register_buffer("codebooks_LKD", torch.zeros(num_levels, num_codes, dim))
        self.register_buffer("idle_LK", torch.zeros(num_levels, num_codes))
        self.register_buffer("is_started", torch.zeros(1))

    @torch.no_grad()
    def start(self, vectors_MD: Tensor) -> None:
        """Take the codebooks of a tree of balanced clusters (`tokenization.balanced_kmeans`).

        Rank 0 fits them and all ranks take its result, bit for bit.

        Raises:
            ValueError: fewer vectors than codes.
        """
        num_levels, num_codes, _ = self.codebooks_LKD.shape
        if own_rank() == 0:
            fitted = BalancedRQKMeans(num_levels=num_levels, num_codes=num_codes).fit(
                vectors_MD.float().cpu().numpy()
            )
            self.codebooks_LKD.copy_(torch.from_numpy(fitted.codebooks))
        if num_ranks() > 1:
            dist.broadcast(self.codebooks_LKD, 0)
        self.is_started.fill_(1)

    def forward(self, vectors_MD: Tensor) -> Quantized:
        """Walk: nearest codeword, subtract, next level (Eq. 2 to 4); in fp32."""
        with torch.autocast(vectors_MD.device.type, enabled=False):
            return self._walk(vectors_MD)

    def _walk(self, vectors_MD: Tensor) -> Quantized:
        codes, residuals, codewords = [], [], []
        residual_MD = vectors_MD
        for codewords_KD in self.codebooks_LKD:
            code_M = nearest(residual_MD.detach(), codewords_KD)
            codeword_MD = codewords_KD.index_select(0, code_M)
            codes.append(code_M)
            residuals.append(residual_MD)
            codewords.append(codeword_MD)
            residual_MD = residual_MD - codeword_MD
        return Quantized(
            torch.stack(codes, dim=1), torch.stack(residuals, dim=1), torch.stack(codewords, dim=1)
        )

    @torch.no_grad()
    def follow(self, found: Quantized, rows_B: Tensor, ids_B: Tensor) -> None:
        """Move the codebooks after a step.

        Args:
            found: of vectors.
            rows_B: the vector of each sample of this rank; a vector counts as often as it stands
                here. Ranks have equally many samples.
            ids_B: an id a sample; samples with equal ids have equal vectors.
        """
        num_levels, num_codes, dim = self.codebooks_LKD.shape
        weight_M = torch.zeros(len(found.codes_ML), device=rows_B.device)
        weight_M.index_add_(0, rows_B, torch.ones_like(rows_B, dtype=weight_M.dtype))
        at = found.codes_ML + num_codes * torch.arange(num_levels, device=rows_B.device)
        values = torch.cat(
            [
                found.residual_MLD * weight_M[:, None, None],
                weight_M[:, None, None].expand(-1, num_levels, 1),
            ],
            dim=2,
        )
        total = values.new_zeros(num_levels * num_codes, dim + 1)
        total.index_add_(0, at.flatten(), values.flatten(0, 1))
        total = sum_over_ranks(total).view(num_levels, num_codes, dim + 1)
        count_LK = total[..., -1]
        is_used_LK = count_LK > 0
        mean_LKD = total[..., :-1] / count_LK.clamp_min(1).unsqueeze(2)
        moved_LKD = self.codebooks_LKD.lerp(mean_LKD, 1 - self.decay)
        self.codebooks_LKD.copy_(
            torch.where(is_used_LK.unsqueeze(2), moved_LKD, self.codebooks_LKD)
        )
        self.idle_LK.copy_(torch.where(is_used_LK, 0, self.idle_LK + 1))
        if bool((self.idle_LK >= self.dead_after).any()):
            self._revive(found, rows_B, ids_B)

    def _revive(self, found: Quantized, rows_B: Tensor, ids_B: Tensor) -> None:
        """Set dead codewords on the residuals that are farthest from theirs, one item each."""
        ids_G = rows_of_all_ranks(ids_B)
        distinct, place_G = torch.unique(ids_G, return_inverse=True)
        last_of = torch.zeros_like(distinct).scatter_(
            0, place_G, torch.arange(len(ids_G), device=ids_G.device)
        )
        for level in range(len(self.codebooks_LKD)):
            dead = (self.idle_LK[level] >= self.dead_after).nonzero().squeeze(1)
            if not len(dead):
                continue
            residual_GD = rows_of_all_ranks(found.residual_MLD[:, level].index_select(0, rows_B))
            codeword_GD = rows_of_all_ranks(found.codeword_MLD[:, level].index_select(0, rows_B))
            error = (residual_GD - codeword_GD).square().sum(1).index_select(0, last_of)
            worst = error.argsort(descending=True, stable=True)[: len(dead)]
            dead = dead[: len(worst)]
            self.codebooks_LKD[level, dead] = residual_GD[last_of[worst]]
            self.idle_LK[level, dead] = 0


def nearest(points_MD: Tensor, codewords_KD: Tensor) -> Tensor:
    """The nearest codeword of each point, int64 (M,), as `tokenization.residual.nearest` has it.

    Ties, and what float32 rounding can't tell from them, go to the smallest index.
    """
    half_squares_K = 0.5 * codewords_KD.square().sum(1)
    scores_MK = points_MD @ codewords_KD.T - half_squares_K
    best_M1 = scores_MK.argmax(dim=1, keepdim=True)
    norms_K = (2 * half_squares_K).sqrt()
    rounding_M1 = _ROUNDING * (
        points_MD.norm(dim=1, keepdim=True) * norms_K[best_M1] + half_squares_K[best_M1].abs()
    )
    least_M1 = scores_MK.gather(1, best_M1) - rounding_M1
    return (scores_MK >= least_M1).int().argmax(dim=1)
