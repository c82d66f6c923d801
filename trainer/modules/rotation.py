"""Static features as one block, seen from K directions (STORE section 2.2, Eq. 6-9).

Legend: B impressions, G groups, g width of a group's features, c width of a fused group, C = G c
width of the block, K rotations, M = C (C - 1) / 2 free angles of a rotation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.modules.mlp import mlp


class FeatureGroups(nn.Module):
    """A shallow network for each group of features; their outputs side by side (Eq. 6).

    Args:
        widths: g of each group.
        hidden_dim: of each group's network.
        dim: c.

    Shape:
        G tensors (B, g) -> (B, C).
    """

    def __init__(self, widths: Sequence[int], *, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(mlp(width, (hidden_dim,), dim) for width in widths)

    def forward(self, groups: Sequence[Tensor]) -> Tensor:
        """Fuse each group."""
        fused = [network(x) for network, x in zip(self.networks, groups, strict=True)]
        return torch.cat(fused, dim=1)


class Rotations(nn.Module):
    """K learned rotations, orthogonal at every step by what they are made of (Eq. 7 and 9).

    `R = (I + S)^-1 (I - S)` of a skew-symmetric S is orthogonal whatever S is (Cayley), so any
    optimizer keeps Eq. 9 exactly; S is the parameter. R is computed in double precision and rounded
    once, also under autocast, where the product with it alone is of lower precision.

    S is drawn with a spread at which the mean cosine of R's angles is 0: by the semicircle law of
    its eigenvalues that is a variance of 2 / C. The rotations then start as far from each other
    as random orthogonal matrices are: `|R_i - R_j|_F^2 = 2 C`.

    Args:
        num_rotations: K.
        dim: C.

    Shape:
        (B, C) -> (B, K, C).
    """

    def __init__(self, num_rotations: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.skew_KM = nn.Parameter(torch.empty(num_rotations, dim * (dim - 1) // 2))
        self._of_last_pass: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rotations that are spread like random ones."""
        nn.init.normal_(self.skew_KM, std=math.sqrt(2 / self.dim))

    def matrices(self) -> Tensor:
        """R (K, C, C), in the parameter's dtype."""
        row, column = torch.triu_indices(self.dim, self.dim, 1, device=self.skew_KM.device)
        upper_KCC = self.skew_KM.new_zeros(
            self.skew_KM.shape[0], self.dim, self.dim, dtype=torch.float64
        )
        upper_KCC[:, row, column] = self.skew_KM.double()
        skew_KCC = upper_KCC - upper_KCC.mT
        one_CC = torch.eye(self.dim, dtype=torch.float64, device=skew_KCC.device)
        return torch.linalg.solve(one_CC + skew_KCC, one_CC - skew_KCC).to(self.skew_KM.dtype)

    def forward(self, block_BC: Tensor) -> Tensor:
        """Rotate the block K times."""
        rotation_KCC = self.matrices()
        if self.training:
            self._of_last_pass = rotation_KCC
        turned = block_BC @ rotation_KCC.transpose(0, 1).flatten(1)
        return turned.unflatten(1, (-1, self.dim))

    def diversity(self) -> Tensor:
        """Sum over pairs of |R_i - R_j|_F^2 in the last training forward pass (Eq. 8).

        Raises:
            RuntimeError: when there was none.
        """
        rotation_KCC = self._last()
        total = rotation_KCC.sum(dim=0).square().sum()
        return rotation_KCC.shape[0] * rotation_KCC.square().sum() - total

    def measures(self) -> dict[str, float]:
        """Of the last training forward pass.

        `orthogonality_error`: largest absolute value of R^T R - I (Eq. 9). `rotation_distance`:
        mean |R_i - R_j|_F over pairs, divided by sqrt(2 C), that of random orthogonal matrices.

        Raises:
            RuntimeError: when there was none.
        """
        rotation_KCC = self._last().detach().double()  # autocast leaves double precision alone
        error_KCC = rotation_KCC.mT @ rotation_KCC - torch.eye(self.dim).to(rotation_KCC)
        measured = {"orthogonality_error": float(error_KCC.abs().max())}
        num_rotations = rotation_KCC.shape[0]
        if num_rotations > 1:
            first, second = torch.triu_indices(num_rotations, num_rotations, 1)
            apart = (rotation_KCC[first] - rotation_KCC[second]).square().sum(dim=(1, 2)).sqrt()
            measured["rotation_distance"] = float(apart.mean()) / math.sqrt(2 * self.dim)
        return measured

    def _last(self) -> Tensor:
        if self._of_last_pass is None:
            raise RuntimeError(
                "diversity and measures of rotations belong to a training forward pass; there "
                "was none"
            )
        return self._of_last_pass
