"""e_v of the whole catalogue while the encoder stays as it is: encoded once, not in every step.

Legend: N items of the catalogue, D item dim, P parameters of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.modules.vq_encoder import VQEncoder


class RestingCatalogue:
    """Keeps what the encoder said of each item, as long as weights and catalogue are the same.

    Whether they are is seen by the sum of each weight, in double precision: it holds whoever
    changed them (an optimizer, a checkpoint that was loaded), and under FSDP.

    Args:
        encode: encodes the whole catalogue, (N, D).
    """

    def __init__(self, encode: Callable[[], Tensor]) -> None:
        self._encode = encode
        self._sums_P = torch.zeros(0)
        self._features_NF = torch.zeros(0)
        self._e_ND = torch.zeros(0)

    @torch.no_grad()
    def vectors(self, encoder: VQEncoder) -> Tensor:
        """e_v of every item (N, D), without gradient."""
        sums_P = torch.stack([one.sum(dtype=torch.float64) for one in encoder.parameters()])
        # `take_catalogue` puts another tensor in the place of this one.
        is_same = self._features_NF is encoder.dense_NF and torch.equal(self._sums_P, sums_P)
        if not is_same:
            self._sums_P, self._features_NF = sums_P, encoder.dense_NF
            self._e_ND = self._encode()
        return self._e_ND
