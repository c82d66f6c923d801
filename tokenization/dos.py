"""DOS (Yin et al., arXiv 2602.04460): two flows with one codebook, quantized after rotations.

Shape suffixes: B items of a batch, D dimensions of the content, C collaborative ones, H latent
dimensions, P of them that a level quantizes, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from tokenization.autoencoder import blocks, nearest_codeword, perceptron
from tokenization.base import Embeddings
from tokenization.collaborative import (
    CollaborativeNetwork,
    CollaborativeRQVAE,
    CollaborativeTokenizer,
)
from tokenization.kmeans import fit_kmeans


@dataclass(frozen=True, kw_only=True)
class DOS(CollaborativeRQVAE):
    """Settings of DOS (dual-flow orthogonal semantic IDs).

    Taken from public descriptions of the paper: a user flow and an item flow that share one
    codebook and are matched by binary cross-entropy; in front of each level a learned orthogonal
    matrix, after which the primary features alone are quantized, while secondary features and what
    quantization leaves of the primary ones go on to the next level; a loss of matching,
    quantization and reconstruction.

    Our reading, for items alone:

    * The user flow of an item is its collaborative embedding: what those bring along who click it
      (SASRec's item vector is the direction of the states before its clicks). The paper encodes the
      click sequence of each impression.
    * Matrices are orthogonal by construction, `R = R_0 exp(A - A^T)`, so that there is no
      orthogonality loss; R_0 are the principal directions of what a level sees at the start.
    * Primary features are the first P after the rotation, the same ones for all items: a learned
      choice of them is a permutation, which R contains. A codeword then lies in the subspace of the
      first P rows of R, and the walk is the residual walk over such codewords.
    * The match looks at sums of codewords, and so at primary features alone: this is what we make
      of the mutual information of primary features and label. Pairs of the same item are positive,
      all other pairs of the batch negative, both halves of equal weight.

    Args:
        match_weight: weight of the matching loss.
        primary_share: P over H.
    """

    kind: ClassVar[str] = "dos"

    match_weight: float = 1.0
    primary_share: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.match_weight < 0 or not 0 < self.primary_share <= 1:
            raise ValueError(
                f"match_weight and primary_share: expected at least 0 and above 0 to 1, found "
                f"{self.match_weight} and {self.primary_share}"
            )

    @property
    def primary_dim(self) -> int:
        """P."""
        return max(1, round(self.primary_share * self.latent_dim))

    def network(self, dim: int) -> DOSNetwork:
        """Networks for D dimensions of content."""
        return DOSNetwork(dim, self)

    def fitted(self, tensors: Mapping[str, NDArray[Any]]) -> DOSTokenizer:
        """The tokenizer with these tensors."""
        return DOSTokenizer(config=self, tensors=tensors)


class DOSNetwork(CollaborativeNetwork):
    """Item flow (the autoencoder), user flow, rotations, codewords that both flows share."""

    config: DOS
    start_LHH: Tensor

    def __init__(self, dim: int, config: DOS) -> None:
        super().__init__(dim, config)
        shape = (config.num_levels, config.latent_dim, config.latent_dim)
        self.user_flow = perceptron((config.collaborative_dim, *config.hidden, config.latent_dim))
        self.match_bias = nn.Parameter(torch.zeros(()))
        self.skew_LHH = nn.Parameter(torch.zeros(shape))
        self.register_buffer("start_LHH", torch.eye(config.latent_dim).repeat(shape[0], 1, 1))

    def rotations(self) -> Tensor:
        """Orthogonal matrices `(L, H, H)`, a direction a row, primary ones first."""
        return self.start_LHH @ torch.linalg.matrix_exp(self.skew_LHH - self.skew_LHH.mT)

    def codewords(self) -> Tensor:
        """The codebooks, each in the subspace of its level's primary features `(L, K, H)`."""
        primary_LPH = self.rotations()[:, : self.config.primary_dim]
        return self.codebooks @ primary_LPH.mT @ primary_LPH

    @torch.no_grad()
    def start(self, embeddings: Embeddings) -> None:
        """Start each level on principal directions and k-means of what it sees."""
        content = embeddings[:, : self.dim]
        left_NH = torch.cat([self.encode(x_BD) for x_BD in blocks(content)])
        for level in range(self.config.num_levels):
            centred_NH = left_NH - left_NH.mean(dim=0)
            directions_HH = torch.linalg.eigh(centred_NH.T @ centred_NH).eigenvectors.flip(1)
            self.start_LHH[level] = directions_HH.T
            primary_PH = directions_HH.T[: self.config.primary_dim]
            seen_NH = left_NH @ primary_PH.T @ primary_PH
            codewords_KH = torch.from_numpy(
                fit_kmeans(
                    np.ascontiguousarray(seen_NH.numpy()),
                    num_codes=self.config.num_codes,
                    num_iterations=10,
                    seed=self.config.seed + level,
                )
            )
            self.codebooks[level] = codewords_KH
            left_NH = left_NH - codewords_KH[nearest_codeword(left_NH, codewords_KH)]

    @torch.no_grad()
    def finish(self) -> None:
        """Leave in `codebooks` what the walk has gone by."""
        self.codebooks.copy_(self.codewords())

    def forward(self, x_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, the items' codes and what each level saw of them."""
        content_BD, collaborative_BC, is_known_B = self.sides(x_BE)
        item_BH, loss, codes_BL, seen_BLH = self.quantize(self.encoder(content_BD))
        loss = loss + (self.decoder(item_BH) - content_BD).square().sum(dim=1).mean()
        if not is_known_B.any():
            return loss, codes_BL, seen_BLH
        user_BH, of_users, _, _ = self.quantize(self.user_flow(collaborative_BC[is_known_B]))
        match = match_loss(user_BH, item_BH[is_known_B], self.match_bias)
        further = self.config.match_weight * match
        return loss + of_users + self.dim * further, codes_BL, seen_BLH


class DOSTokenizer(CollaborativeTokenizer):
    """A trained DOS."""

    kind = DOS.kind


def match_loss(user_BH: Tensor, item_BH: Tensor, bias: Tensor) -> Tensor:
    """Binary cross-entropy of all pairs of a batch, positive on the diagonal; a scalar.

    A pair's logit is `<user, item> / sqrt(H) + bias`. Half of the weight is on positive pairs.
    """
    logits_BB = user_BH @ item_BH.T / user_BH.shape[1] ** 0.5 + bias
    same_BB = torch.eye(len(logits_BB))
    loss_BB = binary_cross_entropy_with_logits(logits_BB, same_BB, reduction="none")
    positive = (loss_BB * same_BB).sum() / len(logits_BB)
    num_negatives = max(1, len(logits_BB) * (len(logits_BB) - 1))
    return 0.5 * positive + 0.5 * (loss_BB * (1 - same_BB)).sum() / num_negatives
