"""What draws ETEGRec's tokenizer and generator together: heads and losses (Eq. 4 to 8, 14 to 16).

Legend: B windows, T items, L levels, K codes, D dim of the generator, P pairs of a sequence and its
next item, E dims of the items' embeddings, H latent dims of the tokenizer, N items.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokenization.autoencoder import network_tensors, perceptron
from tokenization.base import Embeddings
from tokenization.collaborative import info_nce
from tokenization.collisions import Collisions, resolve_collisions
from tokenization.rq_vae import RQVAE, RQVAENetwork, RQVAETokenizer
from trainer.generative_retrieval.item_tokens import ItemTokens


class Both(nn.Module):
    """The tokenizer beside the generator, and the heads that bring its outputs to items' space.

    Args:
        settings: of the tokenizer.
        embeddings: float32 (N, E) of the items.
        dim: D.
    """

    items_NE: Tensor

    def __init__(self, settings: RQVAE, embeddings: Embeddings, dim: int) -> None:
        super().__init__()
        self.settings = settings
        width = embeddings.shape[1]
        self.tokenizer = RQVAENetwork(width, settings)
        self.heads = nn.ModuleList(perceptron((dim, dim, width)) for _ in range(2))
        self.register_buffer("items_NE", torch.from_numpy(embeddings), persistent=False)

    def tokens(self, embeddings: Embeddings, collisions: Collisions) -> ItemTokens:
        """The items' codes as the tokenizer stands."""
        on_cpu = copy.deepcopy(self.tokenizer).cpu()
        fitted = RQVAETokenizer(config=self.settings, tensors=network_tensors(on_cpu))
        codes = resolve_collisions(fitted.encode(embeddings), embeddings, fitted, how=collisions)
        return ItemTokens(codes, fitted.num_codes)

    def losses(
        self,
        output_BTLD: Tensor,
        items_BT: NDArray[np.int64],
        pairs_P2: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_SQ, L_SIA and L_PSA of pairs of a history and the item behind it.

        Args:
            output_BTLD: of the generator.
            items_BT: item rows.
            pairs_P2: int64, window and place of each pair's item; the history is what stands
                before it.
            temperature: tau.
        """
        if not len(pairs_P2):
            nothing = output_BTLD.new_zeros(())
            return nothing, nothing, nothing
        window_P, place_P = pairs_P2.T
        pooled_PD, first_PD = histories(output_BTLD, window_P, place_P)
        items = torch.from_numpy(items_BT).to(self.items_NE.device)[window_P, place_P]
        item_PE = self.tokenizer.standardizer(self.items_NE[items])
        latent_PH = self.tokenizer.encoder(item_PE)
        straight_PH, quantization, _, _ = self.tokenizer.quantize(latent_PH)
        rebuilt_PE = self.tokenizer.decoder(straight_PH)
        quantization = quantization + (rebuilt_PE - item_PE).square().sum(dim=1).mean()
        sequence_PH = self.tokenizer.encoder(self.heads[0](pooled_PD))
        return (
            quantization,
            symmetric_divergence(
                token_chances(latent_PH, self.tokenizer.codewords()),
                token_chances(sequence_PH, self.tokenizer.codewords()),
            ),
            preference_semantic_loss(self.heads[1](first_PD), rebuilt_PE, temperature),
        )


def draw_pairs(there_BT: Tensor, num_pairs: int) -> Tensor:
    """Random items that another stands before, int64 (P, 2) of window and place, each once."""
    candidates_C2 = there_BT[:, 1:].nonzero() + torch.tensor([0, 1], device=there_BT.device)
    drawn = torch.randperm(len(candidates_C2))[:num_pairs]
    return candidates_C2[drawn.to(there_BT.device)]


def histories(output_BTLD: Tensor, window_P: Tensor, place_P: Tensor) -> tuple[Tensor, Tensor]:
    """What stands before items: the mean of its outputs and its last one, both (P, D)."""
    output_BSD = output_BTLD.flatten(1, 2)
    last_P = place_P * output_BTLD.shape[2]  # the output at S predicts token S
    summed_PD = output_BSD.cumsum(dim=1)[window_P, last_P]
    return summed_PD / (last_P + 1).unsqueeze(1), output_BSD[window_P, last_P]


def token_chances(latent_PH: Tensor, codewords_LKH: Tensor) -> Tensor:
    """Logarithms (P, L, K) of `P(k | v_l)`, level by level along the own walk (Eq. 4 to 6)."""
    left_PH, levels = latent_PH, []
    for codewords_KH in codewords_LKH:
        # The residual's own square is the same for all codewords.
        logits_PK = 2 * left_PH @ codewords_KH.T - codewords_KH.square().sum(dim=1)
        levels.append(logits_PK.log_softmax(dim=1))
        left_PH = left_PH - codewords_KH[logits_PK.argmax(dim=1)]
    return torch.stack(levels, dim=1)


def symmetric_divergence(a_PLK: Tensor, b_PLK: Tensor) -> Tensor:
    """KL both ways between distributions given as logarithms, summed over levels (Eq. 15)."""
    return ((a_PLK.exp() - b_PLK.exp()) * (a_PLK - b_PLK)).sum(dim=(1, 2)).mean()


def preference_semantic_loss(
    preference_PE: Tensor, rebuilt_PE: Tensor, temperature: float
) -> Tensor:
    """InfoNCE by cosine, from preferences to items and back, over the batch (Eq. 16)."""
    a_PE, b_PE = normalize(preference_PE, dim=1), normalize(rebuilt_PE, dim=1)
    there = info_nce(a_PE, b_PE, temperature=temperature)
    return there + info_nce(b_PE, a_PE, temperature=temperature)
