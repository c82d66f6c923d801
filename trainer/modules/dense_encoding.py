"""Numbers as piecewise-linear codes over quantile bins.

A plain linear layer sees a count or a mean through one slope; a tree sees thresholds. Cutting
each feature at its training quantiles and telling how far the value lies through each bin gives
a network the thresholds too, without any statistics over the batch (which would differ by rank).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class PiecewiseLinearEncoding(nn.Module):
    """Encodes F numbers as F x Q values in [0, 1].

    Value q of a feature is 0 below bin q, 1 above it, and rises linearly inside.

    Args:
        num_features: F.
        num_bins: Q.

    Shape:
        dense_BF -> (B, F * Q).

    Example::

        encoding = PiecewiseLinearEncoding(num_features=3, num_bins=16)
        encoding.fit(np.random.randn(1000, 3).astype("float32"))
        encoding(torch.randn(8, 3)).shape  # (8, 48)
    """

    edges_FE: Tensor

    def __init__(self, *, num_features: int, num_bins: int) -> None:
        super().__init__()
        self.num_bins = num_bins
        # Not linspace: once transformers has loaded a model, it may stay on the CPU within
        # `torch.device("meta")`.
        edges = (torch.arange(num_bins + 1) / num_bins).repeat(num_features, 1)
        self.register_buffer("edges_FE", edges)

    @property
    def out_dim(self) -> int:
        """F * Q."""
        return self.edges_FE.shape[0] * self.num_bins

    def fit(self, sample_SF: np.ndarray) -> None:
        """Set the bin edges to the quantiles of a sample of training rows (S, F)."""
        if sample_SF.shape[1] == 0:
            return
        quantiles = np.linspace(0, 1, self.num_bins + 1)
        edges = np.quantile(sample_SF.astype(np.float64), quantiles, axis=0).T
        # Equal edges (a value that many rows share) make an empty bin: a step at that value.
        edges = np.maximum.accumulate(edges, axis=1)
        self.edges_FE.copy_(torch.from_numpy(np.ascontiguousarray(edges)).to(self.edges_FE.dtype))

    def forward(self, dense_BF: Tensor) -> Tensor:
        """Encode (B, F) as (B, F * Q)."""
        low, high = self.edges_FE[:, :-1], self.edges_FE[:, 1:]
        width = (high - low).clamp_min(1e-6)
        code_BFQ = ((dense_BF.unsqueeze(-1) - low) / width).clamp(0.0, 1.0)
        return code_BFQ.flatten(1)
