"""DAS (Ye et al., arXiv 2508.10584): quantization and alignment with behaviour in one training.

Shape suffixes: B items of a batch, D dimensions of the content, C collaborative ones, H latent
dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from tokenization.autoencoder import perceptron
from tokenization.collaborative import (
    CollaborativeNetwork,
    CollaborativeRQVAE,
    CollaborativeTokenizer,
    info_nce,
)


@dataclass(frozen=True, kw_only=True)
class DAS(CollaborativeRQVAE):
    """Settings of DAS (dual-aligned semantic IDs): `L = L_sem + alpha L_CF + beta L_align`.

    Taken from public descriptions of the paper: one stage instead of two; the three parts and their
    weights (alpha 1, beta 0.5); collaborative embeddings divided into a debiased factor and one of
    bias, orthogonal to each other, of which alignment sees the first alone; contrastive alignment
    as the bound on mutual information of semantic IDs and behaviour.

    Our reading, for items alone:

    * L_sem is RQ-VAE's loss of the content, z the sum of codewords (straight-through).
    * L_CF: two factors of the collaborative embedding rebuild it (mean squared error), and the
      square of their cosine is added, so that they tell different things. The paper trains the
      factors on clicks and on popularity; here behaviour comes as embeddings that are already
      learned, and what the content can't explain goes to the second factor.
    * L_align: InfoNCE by cosine from z to the debiased factor and back ("dual i2i"), and from z to
      the z of the item of the batch whose collaborative embedding is most alike ("co-occurrence
      i2i"). The four alignments that have a user on a side, and semantic IDs of users, are left
      out: a tokenizer of items has no users.

    Args:
        alpha: weight of L_CF.
        beta: weight of L_align.
        temperature: of L_align.
    """

    kind: ClassVar[str] = "das"

    alpha: float = 1.0
    beta: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if min(self.alpha, self.beta) < 0 or self.temperature <= 0:
            raise ValueError(
                f"alpha, beta and temperature: expected at least 0, 0 and above 0, found "
                f"{self.alpha}, {self.beta} and {self.temperature}"
            )

    def network(self, dim: int) -> DASNetwork:
        """Networks for D dimensions of content."""
        return DASNetwork(dim, self)

    def fitted(self, tensors: Mapping[str, NDArray[Any]]) -> DASTokenizer:
        """The tokenizer with these tensors."""
        return DASTokenizer(config=self, tensors=tensors)


class DASNetwork(CollaborativeNetwork):
    """RQ-VAE of the content, and the two factors of the collaborative embedding."""

    config: DAS

    def __init__(self, dim: int, config: DAS) -> None:
        super().__init__(dim, config)
        width = config.hidden[-1] if config.hidden else config.latent_dim
        both = 2 * config.latent_dim
        self.factors = perceptron((config.collaborative_dim, width, both))
        self.rebuild = perceptron((both, width, config.collaborative_dim))

    def forward(self, x_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a batch, its codes and what each level saw."""
        config = self.config
        content_BD, collaborative_BC, is_known_B = self.sides(x_BE)
        straight_BH, loss, codes_BL, seen_BLH = self.quantize(self.encoder(content_BD))
        loss = loss + (self.decoder(straight_BH) - content_BD).square().sum(dim=1).mean()
        if not is_known_B.any():
            return loss, codes_BL, seen_BLH
        straight_BH, collaborative_BC = straight_BH[is_known_B], collaborative_BC[is_known_B]
        factors_BF = self.factors(collaborative_BC)
        rebuilt = (self.rebuild(factors_BF) - collaborative_BC).square().mean()
        debiased_BH, bias_BH = factors_BF.chunk(2, dim=1)
        apart = cosine_similarity(debiased_BH, bias_BH, dim=1).square().mean()
        aligned = alignment_loss(
            straight_BH, debiased_BH, collaborative_BC, temperature=config.temperature
        )
        further = config.alpha * (rebuilt + apart) + config.beta * aligned
        return loss + self.dim * further, codes_BL, seen_BLH


class DASTokenizer(CollaborativeTokenizer):
    """A trained DAS."""

    kind = DAS.kind


def alignment_loss(
    z_BH: Tensor, debiased_BH: Tensor, collaborative_BC: Tensor, *, temperature: float
) -> Tensor:
    """Dual and co-occurrence alignment of a batch; a scalar.

    Args:
        z_BH: sums of codewords.
        debiased_BH: factors of the same items.
        collaborative_BC: their collaborative embeddings, which say who belongs together.
        temperature: of the cosines.
    """
    z_BH, debiased_BH = normalize(z_BH, dim=1), normalize(debiased_BH, dim=1)
    dual = info_nce(z_BH, debiased_BH, temperature=temperature)
    dual = dual + info_nce(debiased_BH, z_BH, temperature=temperature)
    if len(z_BH) < 2:
        return dual
    own_BB = torch.eye(len(z_BH), dtype=torch.bool)
    unit_BC = normalize(collaborative_BC, dim=1)
    partner_B = (unit_BC @ unit_BC.T).masked_fill(own_BB, float("-inf")).argmax(dim=1)
    logits_BB = (z_BH @ z_BH.T / temperature).masked_fill(own_BB, float("-inf"))
    return dual + cross_entropy(logits_BB, partner_B)
