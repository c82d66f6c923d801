"""PEPNet: embeddings and hidden layers scaled by gates that know who and where.

Legend: B impressions, F features side by side, P prior features, H hidden dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PEPNetConfig:
    """Size of a PEPNet tower.

    Args:
        hidden_dims: widths of the deep network.
        gate_dim: hidden width of each gate.
        prior_features: features that personalize hidden layers (user, item, author); names of
            pooled features, `candidate`, `history`...
        domain_features: features that personalize the embeddings (page, scene); empty leaves
            EPNet out, for logs of one domain.
        dropout: after each hidden layer.
    """

    hidden_dims: tuple[int, ...]
    gate_dim: int = 64
    prior_features: tuple[str, ...] = ("user_id", "candidate")
    domain_features: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        if not self.hidden_dims or not self.prior_features or self.gate_dim < 1:
            raise ValueError(
                f"PEPNet: hidden_dims is {self.hidden_dims}, prior_features "
                f"{self.prior_features} and gate_dim {self.gate_dim}, expected at least one of each"
            )

    def build(self, feature_dims: dict[str, int]) -> PEPNet:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when a prior or domain feature is none of them.
        """
        return PEPNet(self, feature_dims)


class GateUnit(nn.Module):
    """`2 sigmoid(W' relu(W x + b) + b')`: values in (0, 2), 1 where it says nothing (Eq. 1)."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim)
        )

    def forward(self, x_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        return 2 * torch.sigmoid(self.layers(x_BI))


class GatedLayer(nn.Module):
    """A hidden layer whose input PPNet's gate scales (Eq. 4 and 5)."""

    def __init__(
        self, in_dim: int, out_dim: int, *, gate_in_dim: int, gate_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.gate = GateUnit(gate_in_dim, in_dim, hidden_dim=gate_dim)
        self.linear = nn.Linear(in_dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, prior_BG: Tensor, hidden_BI: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        out_BO: Tensor = self.dropout(torch.relu(self.linear(self.gate(prior_BG) * hidden_BI)))
        return out_BO


class PEPNet(nn.Module):
    """EPNet and PPNet (Chang et al., 2023, section 2).

    Gates read the features beside their own, behind a stop of the gradient. What is left out: the
    paper has one deep network a task and gates for each; a tower serves all task heads with one
    network, so gates are shared by tasks (the same thing where there is one).

    Shape:
        x_BF -> (B, last hidden dim).
    """

    def __init__(self, config: PEPNetConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.widths = list(feature_dims.values())
        in_dim = sum(self.widths)
        self.prior = _places("prior_features", config.prior_features, feature_dims)
        self.domain = _places("domain_features", config.domain_features, feature_dims)
        self.out_dim = config.hidden_dims[-1]
        self.embedding_gate = (
            GateUnit(self._width(self.domain) + in_dim, in_dim, hidden_dim=config.gate_dim)
            if self.domain
            else None
        )
        widths = (in_dim, *config.hidden_dims)
        self.blocks = nn.ModuleList(
            GatedLayer(
                before,
                after,
                gate_in_dim=self._width(self.prior) + in_dim,
                gate_dim=config.gate_dim,
                dropout=config.dropout,
            )
            for before, after in zip(widths, config.hidden_dims, strict=False)
        )

    def _width(self, places: list[int]) -> int:
        return sum(self.widths[at] for at in places)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, last hidden dim)."""
        fields = x_BF.split(self.widths, dim=1)
        hidden_BH = x_BF
        if self.embedding_gate is not None:
            domain = [fields[at] for at in self.domain]
            hidden_BH = x_BF * self.embedding_gate(torch.cat([*domain, x_BF.detach()], dim=1))
        prior = [fields[at] for at in self.prior]
        prior_BG = torch.cat([*prior, hidden_BH.detach()], dim=1)
        for layer in self.blocks:
            hidden_BH = layer(prior_BG, hidden_BH)
        return hidden_BH


def _places(field: str, names: tuple[str, ...], feature_dims: Mapping[str, int]) -> list[int]:
    known = list(feature_dims)
    unknown = [name for name in names if name not in feature_dims]
    if unknown:
        raise ValueError(
            f"PEPNet: {field} names {', '.join(unknown)}, but the features are {', '.join(known)}"
        )
    return [known.index(name) for name in names]
