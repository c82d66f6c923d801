"""What DIG's retrieval path learns from, and L_recall (Eq. 10).

Legend: B impressions, N negatives of each, S prefixes of each, G = S / L groups of prefixes, L
levels, D dim of SID embeddings, C width of cross features (d_c), T tasks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from trainer.modules.token_cross import TokenCross, TokenPredictor
from trainer.modules.user_to_token import BucketMeans, distillation_loss, prefix_means

ImpressionU2T = Literal["statistic", "none"]
"""u2t of an impression in L_recall: the batch's statistic (Eq. 13), or nothing (Table 6)."""


class RecallSamples(NamedTuple):
    """Prefixes that the retrieval path is trained on, level after level.

    Attributes:
        prefix_BSD: of the impression's item with the statistic; then, with retrieval samples, of
            the same item and of the negatives with what is known of them in retrieval.
        u2t_BSC: u2t^(1:l) of each, without gradient.
        losses: L_u2t, where MLP_u2t is there to learn, and the size of the statistic's groups.
    """

    prefix_BSD: Tensor
    u2t_BSC: Tensor
    losses: dict[str, Tensor]


def recall_samples(
    prefix_BSLD: Tensor,
    codes_BSL: Tensor,
    user_BE: Tensor,
    means: BucketMeans,
    token_cross: TokenCross,
    impression_u2t: ImpressionU2T,
) -> RecallSamples:
    """Put the samples of a batch together.

    Args:
        prefix_BSLD: prefixes of the impression's item, then of its negatives.
        codes_BSL: their codes.
        user_BE: e_u.
        means: the statistic.
        token_cross: u2t in retrieval.
        impression_u2t: u2t of the impressions.
    """
    own_BLD = prefix_BSLD[:, 0]
    losses = {f"u2t_group_{level + 1}": size for level, size in enumerate(means.group_size_L)}
    own_BLC = token_cross(user_BE, own_BLD, codes_BSL[:, 0])
    if isinstance(token_cross, TokenPredictor):
        losses["u2t"] = distillation_loss(own_BLC, means.u2t_BLC)
    seen_BLC = means.u2t_BLC if impression_u2t == "statistic" else torch.zeros_like(means.u2t_BLC)
    prefixes, u2t = [own_BLD], [prefix_means(seen_BLC)]
    if prefix_BSLD.shape[1] > 1:
        with torch.no_grad():
            others_BNLC = token_cross(user_BE.unsqueeze(1), prefix_BSLD[:, 1:], codes_BSL[:, 1:])
        prefixes += [own_BLD, prefix_BSLD[:, 1:].flatten(1, 2)]
        u2t += [prefix_means(own_BLC.detach()), prefix_means(others_BNLC).flatten(1, 2)]
    return RecallSamples(torch.cat(prefixes, dim=1), torch.cat(u2t, dim=1), losses)


def recall_loss(
    logits_BST: Tensor,
    labels_BT: Tensor,
    *,
    num_levels: int,
    last_level_only: bool,
    unclicked_negatives: bool,
) -> Tensor:
    """L_recall: Eq. 10 over the impressions, and the same over the retrieval samples.

    Positive impressions are the positives of the second; items drawn at random for any impression
    are its negatives. It is a mean over all impressions, of which ranks have equally many.

    Args:
        logits_BST: of `RecallSamples`.
        labels_BT: of the impressions.
        num_levels: L.
        last_level_only: of full SIDs alone.
        unclicked_negatives: retrieval samples hold the impressions without a click too.
    """
    first = num_levels - 1 if last_level_only else 0
    logits_BGLT = logits_BST.unflatten(1, (-1, num_levels))[:, :, first:]
    log_BLT = logits_BGLT[:, 0]
    loss = bce(log_BLT, labels_BT.unsqueeze(1).expand_as(log_BLT))
    if logits_BGLT.shape[1] == 1:
        return loss
    positive_B = (labels_BT[:, 0] > 0.5).float()
    main_BGL = logits_BGLT[:, 1:, :, 0]
    wanted_BGL = torch.zeros_like(main_BGL)
    wanted_BGL[:, 0] = positive_B.unsqueeze(1)
    each_BG = bce(main_BGL, wanted_BGL, reduction="none").mean(dim=2)
    own_B = each_BG[:, 0] if unclicked_negatives else each_BG[:, 0] * positive_B
    return loss + (own_B + each_BG[:, 1:].sum(dim=1)).mean()
