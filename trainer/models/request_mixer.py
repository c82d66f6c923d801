"""DIG's Mixer for very many prefixes of each request, with what is the request's computed once.

Legend: R requests, S prefixes of each, D item dim, C width of cross features (d_c).
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.models.dig import DigNetwork
from trainer.models.shared_features import share_features
from trainer.modules.request_encoder import Request
from trainer.modules.target_attention import FoldedPast


class RequestMixer:
    """The retrieval path of Eq. 16, equal to `DigNetwork.recall` up to rounding.

    A product with concatenated features is a sum of products. Its part of e_u is a request's, and
    so is what keys and query projection of the target attention make of each other; neither is
    computed again for a prefix.

    Args:
        network: in evaluation mode.
        request: whom prefixes are for.
        task: whose logits are wanted.
    """

    @torch.no_grad()
    def __init__(self, network: DigNetwork, request: Request, *, task: int) -> None:
        device = request.user_BE.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else torch.float32
        self._network = network
        self._task = task
        self._dtype = dtype
        self._past = network.attention.fold(request.past, dtype=dtype)
        self._tower = share_features(network.tower, request.user_BE, dtype=dtype)

    def recall(self, prefix_RSD: Tensor, u2t_RSC: Tensor, requests: slice) -> Tensor:
        """Logits (R, S) of some requests' prefixes e_sid^(1:l) with their u2t^(1:l)."""
        network = self._network
        target_RSD = network.sid_norm(prefix_RSD).to(self._dtype)
        cross_RSC = network.u2t_norm(u2t_RSC).to(self._dtype)
        past = FoldedPast(*(part[requests] for part in self._past))
        history_RSD = network.attention.recall_folded(target_RSD, past)
        own_RSP = torch.cat([target_RSD, cross_RSC, history_RSD, target_RSD * history_RSD], dim=2)
        logits_RS1: Tensor = network.heads[self._task](self._tower(own_RSP, requests))
        return logits_RS1.squeeze(2).float()
