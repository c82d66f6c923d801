"""Batch normalization with the statistics of the global batch, on any device.

Legend: M rows of all leading dimensions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.modules.over_ranks import sum_over_ranks


class RankBatchNorm(nn.Module):
    """`(x - mean) / std * weight + bias` over the rows of all ranks.

    `torch.nn.SyncBatchNorm` does the same on CUDA and refuses every other device. Mean and variance
    are two sums over ranks, through which gradients flow, so that any division of a global batch
    into ranks gives equal outputs and gradients.

    Args:
        dim: D.
        momentum: share of a batch's statistics in the running ones, which evaluation uses.
        eps: added to the variance.

    Shape:
        (..., D) -> (..., D), float32.
    """

    running_mean_D: Tensor
    running_var_D: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.weight_D = nn.Parameter(torch.empty(dim))
        self.bias_D = nn.Parameter(torch.empty(dim))
        self.register_buffer("running_mean_D", torch.zeros(dim))
        self.register_buffer("running_var_D", torch.ones(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin as plain standardization."""
        nn.init.ones_(self.weight_D)
        nn.init.zeros_(self.bias_D)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension's values."""
        x = x.float()
        mean_D, var_D = self.running_mean_D, self.running_var_D
        if self.training:
            x_MD = x.flatten(0, -2)
            number = x_MD.new_full((1,), len(x_MD))
            total = sum_over_ranks(torch.cat([x_MD.sum(0), number]))
            number, mean_D = total[-1].detach().clamp_min(1), total[:-1] / total[-1].clamp_min(1)
            # Two passes: a mean of squares minus a square of means would lose small variances.
            var_D = sum_over_ranks((x_MD - mean_D).square().sum(0)) / number
            self._follow(mean_D.detach(), var_D.detach() * number / (number - 1).clamp_min(1))
        return (x - mean_D) * (var_D + self.eps).rsqrt() * self.weight_D + self.bias_D

    @torch.no_grad()
    def _follow(self, mean_D: Tensor, var_D: Tensor) -> None:
        self.running_mean_D.lerp_(mean_D, self.momentum)
        self.running_var_D.lerp_(var_D, self.momentum)
