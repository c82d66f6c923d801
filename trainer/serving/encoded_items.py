"""DIG models for serving: what the ranking path reads (Eq. 6), over items that are encoded already.

Ranking reads e_v of an item, which training's encoder makes of static features alone. An export
holds it for every item, so that neither encoder nor texts are needed to serve. SIDs, their
embeddings and MLP_u2t serve retrieval and are left out: `farewell retrieve` reads the run itself.

Legend: N items of the catalogue, M items of a request, D item dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.models.dig import ENCODED, DigNetwork
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.modules.vq_encoder import StaticFeatures, VQEncoder
from trainer.serving.folder import ServingError

ENCODER = "encoder."
E_ND = "encoder.e_ND"
"""Among the network's weights: e_v of every item, in place of the encoder's own weights."""
RETRIEVAL_PARTS = ("quantizer", "sid_norm", "u2t_norm", "token_cross")
"""Modules of `DigNetwork` that ranking does not read."""


class EncodedItems(nn.Module):
    """Stands for the encoder where all items are encoded.

    Args:
        num_items: N.
        dim: D.

    Shape:
        item rows (M,) -> (M, D).
    """

    e_ND: Tensor

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("e_ND", torch.empty(num_items, dim))

    @property
    def num_items(self) -> int:
        """N."""
        return self.e_ND.shape[0]

    def forward(self, rows_M: Tensor) -> Tensor:
        """e_v of some items."""
        return self.e_ND.index_select(0, rows_M)


@torch.no_grad()
def encoded_items(
    config: LearnedTokensConfig, weights: Mapping[str, Tensor], features: StaticFeatures
) -> Tensor:
    """e_v of every item (N, D), as a trained network encodes them.

    Args:
        config: of the encoder.
        weights: of the network.
        features: of all items.
    """
    encoder = VQEncoder(config)
    encoder.take_catalogue(features)
    own = {name.removeprefix(ENCODER): w for name, w in weights.items() if name.startswith(ENCODER)}
    encoder.load_state_dict(own)
    rows_N = torch.arange(encoder.num_items)
    return torch.cat([encoder(part) for part in rows_N.split(ENCODED)])


def ranking_weights(weights: Mapping[str, Tensor], e_ND: Tensor) -> dict[str, Tensor]:
    """The weights that ranking reads, and the items."""
    left_out = (ENCODER, *(f"{part}." for part in RETRIEVAL_PARTS))
    return {E_ND: e_ND} | {
        name: weight for name, weight in weights.items() if not name.startswith(left_out)
    }


def keep_ranking_path(network: DigNetwork, e_ND: Tensor | None, num_ids: int) -> None:
    """Take out of a network what ranking does not read; weights are loaded afterwards.

    Args:
        network: as it was trained.
        e_ND: of the export.
        num_ids: of the export's items.

    Raises:
        ServingError: without the items, or with other items than there are ids.
    """
    shape = (num_ids, network.config.item.dim)
    if e_ND is None or tuple(e_ND.shape) != shape:
        found = "none" if e_ND is None else tuple(e_ND.shape)
        raise ServingError(f"network.safetensors: {E_ND!r} is {found}, expected {shape}")
    network.add_module("encoder", EncodedItems(*shape))
    # Items are looked up: there is no encoder left that could learn, or rest.
    item = replace(network.config.item, fixed=False, fixed_after=None)
    network.config = replace(network.config, item=item)
    for part in RETRIEVAL_PARTS:
        delattr(network, part)
