"""A tower over rows of which many share their first features, as prefixes share a request's e_u.

Legend: R requests, S rows of each, M = R * S rows, E shared features, P features of a row's own,
F = E + P, Q rank of a cross layer, A = Q * crosses so far, O outputs of a layer.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trainer.models.dcn_moe import DCNMoE
from trainer.models.tower import Tower
from trainer.modules.moe import PerTokenMoE


class SharedFeatures(Protocol):
    """A tower that has been given the features that rows share; for evaluation."""

    def __call__(self, own_RSP: Tensor, requests: slice) -> Tensor:
        """Outputs (R, S, out_dim) from the other features of some requests' rows."""
        ...


def share_features(tower: Tower, shared_RE: Tensor, *, dtype: torch.dtype) -> SharedFeatures:
    """Give a tower the first features of each request's rows.

    Args:
        tower: in evaluation mode.
        shared_RE: the first E of the tower's F features.
        dtype: of the other features that it will be given, and of its matrix products.
    """
    if isinstance(tower, DCNMoE) and tower.is_low_rank:
        return SharedDCNMoE(tower, _readers(tower, shared_RE, dtype))
    return Repeated(tower, shared_RE)


class Repeated:
    """Any tower: what rows share is repeated for each.

    Args:
        tower: in evaluation mode.
        shared_RE: its first features.
    """

    def __init__(self, tower: Tower, shared_RE: Tensor) -> None:
        self.tower = tower
        self.shared_RE = shared_RE

    def __call__(self, own_RSP: Tensor, requests: slice) -> Tensor:
        """Outputs (R, S, out_dim)."""
        shared_RSE = self.shared_RE[requests].unsqueeze(1).expand(-1, own_RSP.shape[1], -1)
        x_RSF = torch.cat([shared_RSE, own_RSP], dim=2)
        return self.tower(x_RSF.flatten(0, 1)).unflatten(0, own_RSP.shape[:2])


class Reader(NamedTuple):
    """A linear layer of the tower that reads `x_l`, the output of its first l crosses.

    A low-rank cross is `x_l = x_0 * (U_l a_l + b_l) + x_(l-1)` with `a_l = V_l x_(l-1)`, so that
    `x_l = x_0 * (1 + sum b + sum U a)`: whatever is linear in `x_l` is, over the features that a
    request's rows share, linear in the few `a` with a matrix of the request's own.

    Attributes:
        own_PO: weights of the rows' own features.
        scale_P: `1 + sum b` of these.
        up_AP: `U` of these, one cross below the other.
        shared_R1O: what the shared features add by `1 + sum b`, and the layer's bias.
        shared_RAO: what they add by each of the `a`.
    """

    own_PO: Tensor
    scale_P: Tensor
    up_AP: Tensor
    shared_R1O: Tensor
    shared_RAO: Tensor

    def read(self, own_MP: Tensor, crosses_MA: Tensor, requests: slice) -> Tensor:
        """The layer's output (M, O)."""
        if len(self.up_AP):
            own_MP = own_MP * torch.addmm(self.scale_P, crosses_MA, self.up_AP)
        bias_R1O, matrix_RAO = self.shared_R1O[requests], self.shared_RAO[requests]
        crosses_RSA = crosses_MA.unflatten(0, (len(bias_R1O), -1))
        shared_RSO = torch.baddbmm(bias_R1O, crosses_RSA, matrix_RAO)
        return torch.addmm(shared_RSO.flatten(0, 1), own_MP, self.own_PO)


class SharedDCNMoE:
    """DCN-MoE with low-rank crosses: its width is that of the rows' own features.

    All experts are computed for all rows, which gives what their gates let in.

    Args:
        tower: in evaluation mode.
        readers: of each cross layer's first matrix, and of the layer behind the crosses.
    """

    def __init__(self, tower: DCNMoE, readers: list[Reader]) -> None:
        self.tower = tower
        self.readers = readers

    def __call__(self, own_RSP: Tensor, requests: slice) -> Tensor:
        """Outputs (R, S, out_dim)."""
        own_MP = own_RSP.flatten(0, 1)
        crosses_MA = own_MP[:, :0]
        for reader in self.readers[:-1]:
            read_MQ = reader.read(own_MP, crosses_MA, requests)
            crosses_MA = torch.cat([crosses_MA, read_MQ], dim=1)
        experts, deep = self.tower.blocks[-2:]
        assert isinstance(experts, PerTokenMoE)
        x_MD = self.readers[-1].read(own_MP, crosses_MA, requests).relu_()
        x_MD = x_MD + experts.every_expert(x_MD.unsqueeze(1)).squeeze(1)
        out_MO: Tensor = deep(x_MD)
        return out_MO.unflatten(0, own_RSP.shape[:2])


@torch.no_grad()
def _readers(tower: DCNMoE, shared_RE: Tensor, dtype: torch.dtype) -> list[Reader]:
    """Work out, in float32, what the shared features add to each layer."""
    # A cross has two linear layers, what reads the last one's output has one.
    blocks = [_linear_layers(block) for block in tower.blocks[: tower.num_crosses + 1]]
    shared_RE = shared_RE.float()
    scale_F = shared_RE.new_ones(blocks[0][0].in_features)
    up_AF = scale_F.new_zeros(0, len(scale_F))
    at = shared_RE.shape[1]
    readers = []
    with torch.autocast(shared_RE.device.type, enabled=False):
        for down, *ups in blocks:
            weight_FO = down.weight.float().T
            parts = (
                weight_FO[at:],
                scale_F[at:],
                up_AF[:, at:],
                _with_bias((shared_RE * scale_F[:at]) @ weight_FO[:at], down).unsqueeze(1),
                (shared_RE.unsqueeze(1) * up_AF[:, :at]) @ weight_FO[:at],
            )
            readers.append(Reader(*(part.to(dtype) for part in parts)))
            for up in ups:
                scale_F = scale_F + up.bias.float()
                up_AF = torch.cat([up_AF, up.weight.float().T])
    return readers


def _linear_layers(block: nn.Module) -> list[nn.Linear]:
    return [layer for layer in block.modules() if isinstance(layer, nn.Linear)]


def _with_bias(x_RO: Tensor, layer: nn.Linear) -> Tensor:
    return x_RO if layer.bias is None else x_RO + layer.bias.float()
