"""LETTER (Wang et al., arXiv 2405.07314): RQ-VAE with a collaborative and a diversity loss.

Shape suffixes: B items of a batch, D dimensions of the content, C collaborative ones, H latent
dimensions, L levels, K codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenization.balanced_kmeans import BalancedRQKMeans
from tokenization.base import Embeddings, check_at_least
from tokenization.collaborative import (
    CollaborativeNetwork,
    CollaborativeRQVAE,
    CollaborativeTokenizer,
    info_nce,
)


@dataclass(frozen=True, kw_only=True)
class LETTER(CollaborativeRQVAE):
    """Settings of LETTER: `L = L_semantic + alpha L_CF + beta L_diversity`.

    * L_semantic is RQ-VAE's loss of the content.
    * L_CF is InfoNCE over the batch between the sum of an item's codewords (straight-through) and
      its collaborative embedding, by plain inner products. Where the paper's collaborative
      embeddings have as many dimensions as the latents, a linear map learns to bring ours there.
    * L_diversity: the codewords of a level are put in groups of nearly equal size (the paper:
      constrained k-means; here `balanced_rq_kmeans` of one level). An item's codeword is drawn to a
      random other one of its group and away from all others of the level: cross-entropy of
      `<e_i, e_+>` among `<e_i, e_j>`, `j != i`. We take its mean over levels.

    Defaults of both weights are those of the authors' published settings.

    Args:
        alpha: weight of L_CF.
        beta: weight of L_diversity.
        num_groups: groups of codewords on a level, at most K.
        regroup_every: epochs after which groups are formed anew.
    """

    kind: ClassVar[str] = "letter"

    alpha: float = 0.01
    beta: float = 1e-4
    num_groups: int = 10
    regroup_every: int = 10

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        for name in ("num_groups", "regroup_every"):
            check_at_least(getattr(self, name), 1, name=name)
        if min(self.alpha, self.beta) < 0:
            raise ValueError(
                f"alpha and beta: expected at least 0, found {self.alpha} and {self.beta}"
            )

    def network(self, dim: int) -> LETTERNetwork:
        """Networks for D dimensions of content."""
        return LETTERNetwork(dim, self)

    def fitted(self, tensors: Mapping[str, NDArray[Any]]) -> LETTERTokenizer:
        """The tokenizer with these tensors."""
        return LETTERTokenizer(config=self, tensors=tensors)


class LETTERNetwork(CollaborativeNetwork):
    """RQ-VAE, the map of collaborative embeddings to latents, and the groups of codewords."""

    config: LETTER

    def __init__(self, dim: int, config: LETTER) -> None:
        super().__init__(dim, config)
        self.to_latent = nn.Linear(config.collaborative_dim, config.latent_dim, bias=False)
        self._group_LK = torch.zeros(config.num_levels, config.num_codes, dtype=torch.int64)

    def start(self, embeddings: Embeddings) -> None:
        """Start codewords and groups."""
        super().start(embeddings)
        self._regroup()

    def after_epoch(self, epoch: int) -> None:
        """Form groups anew when it is time."""
        if epoch % self.config.regroup_every == 0:
            self._regroup()

    def _regroup(self) -> None:
        number = min(self.config.num_groups, self.config.num_codes)
        for level, codewords_KH in enumerate(self.codebooks.detach().numpy()):
            self._group_LK[level] = torch.from_numpy(
                groups_of(codewords_KH, number, seed=self.config.seed)
            )

    def forward(self, x_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, its codes and what each level saw."""
        config = self.config
        content_BD, collaborative_BC, is_known_B = self.sides(x_BE)
        straight_BH, loss, codes_BL, seen_BLH = self.quantize(self.encoder(content_BD))
        loss = loss + (self.decoder(straight_BH) - content_BD).square().sum(dim=1).mean()
        further = straight_BH.new_zeros(())
        if is_known_B.any():
            of_behaviour_BH = self.to_latent(collaborative_BC[is_known_B])
            further = config.alpha * info_nce(straight_BH[is_known_B], of_behaviour_BH)
        diversity = [
            diversity_loss(codewords_KH, codes_B, drawn_from(codes_B, group_K))
            for codewords_KH, codes_B, group_K in zip(
                self.codebooks, codes_BL.T, self._group_LK, strict=True
            )
        ]
        further = further + config.beta * torch.stack(diversity).mean()
        return loss + self.dim * further, codes_BL, seen_BLH


class LETTERTokenizer(CollaborativeTokenizer):
    """A trained LETTER."""

    kind = LETTER.kind


def groups_of(
    codewords_KH: NDArray[np.float32], num_groups: int, *, seed: int
) -> NDArray[np.int64]:
    """Put codewords in groups of nearly equal size, int64 `(K,)`."""
    config = BalancedRQKMeans(num_levels=1, num_codes=num_groups, num_iterations=5, seed=seed)
    return config.fit(codewords_KH).encode(codewords_KH)[:, 0].astype(np.int64)


def drawn_from(codes_B: Tensor, group_K: Tensor) -> Tensor:
    """For each item a random other codeword of its codeword's group, int64 `(B,)`; -1 for none."""
    fits_BK = group_K[codes_B].unsqueeze(1) == group_K
    fits_BK = fits_BK.scatter(1, codes_B.unsqueeze(1), False)
    drawn_B = torch.rand(fits_BK.shape).masked_fill(~fits_BK, -1.0).argmax(dim=1)
    return torch.where(fits_BK.any(dim=1), drawn_B, -1)


def diversity_loss(codewords_KH: Tensor, codes_B: Tensor, drawn_B: Tensor) -> Tensor:
    """Cross-entropy of the drawn codeword among all of the level but the item's own; a scalar.

    Args:
        codewords_KH: of the level.
        codes_B: int64 codes of the items.
        drawn_B: int64, of `drawn_from`; items without one (-1) don't count.
    """
    counts_B = drawn_B >= 0
    if not counts_B.any():
        return codewords_KH.new_zeros(())
    own_B = codes_B[counts_B]
    logits_BK = codewords_KH[own_B] @ codewords_KH.T
    logits_BK = logits_BK.scatter(1, own_B.unsqueeze(1), float("-inf"))
    return nn.functional.cross_entropy(logits_BK, drawn_B[counts_B])
