"""AutoInt: self-attention among the fields of an impression.

Legend: B impressions, N fields, I and D dims of a field's vector before and after a layer, H heads,
X heads of all impressions (B * H), d dim of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from trainer.modules.field_vectors import FieldVectors
from trainer.modules.mlp import mlp


@dataclass(frozen=True, kw_only=True)
class AutoIntConfig:
    """Size of an AutoInt tower.

    Args:
        num_layers: interacting layers.
        num_heads: H, of each.
        head_dim: d, so that a field's vector leaves a layer with H * d dims.
        hidden_dims: widths of an MLP beside attention (AutoInt+); empty for attention alone.
        dropout: after each layer of the MLP.
        field_dim: dim that features of other dims are projected to; None where all agree.
    """

    num_layers: int = 3
    num_heads: int = 2
    head_dim: int = 16
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0
    field_dim: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: naming the field, what was found and what is expected.
        """
        for name in ("num_layers", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"AutoInt: {name} is {getattr(self, name)}, expected at least 1")
        if self.dropout and not self.hidden_dims:
            raise ValueError(
                f"AutoInt: dropout is {self.dropout} but there is no MLP that it would act on; "
                "set hidden_dims, or dropout=0"
            )

    def build(self, feature_dims: dict[str, int]) -> AutoInt:
        """The tower over features of these dims, which it takes side by side in this order.

        Raises:
            ValueError: when dims differ and `field_dim` is None.
        """
        return AutoInt(self, feature_dims)


class InteractingLayer(nn.Module):
    """Multi-head attention of all fields to all fields, with residual and ReLU (Eq. 5 to 8).

    Scores are plain inner products: unlike transformers, the paper does not divide them.

    Args:
        in_dim: of a field's vector on entry.
        num_heads: H.
        head_dim: d.

    Shape:
        (B, N, in_dim) -> (B, N, H * d).
    """

    def __init__(self, in_dim: int, *, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.out_dim = num_heads * head_dim
        # Query, key, value and residual, one below the other.
        self.project = nn.Linear(in_dim, 4 * self.out_dim, bias=False)

    def forward(self, x_BNI: Tensor) -> Tensor:
        """Attend."""
        num_rows, num_fields, _ = x_BNI.shape
        query, key, value, residual = self.project.weight.chunk(4)
        # A product each, not one for all: what it returns is still in the cache when it is turned.
        q_XdN, k_XdN, v_XdN = (
            linear(x_BNI, weight)
            .transpose(1, 2)
            .reshape(num_rows * self.num_heads, self.head_dim, num_fields)
            for weight in (query, key, value)
        )
        # Written out: with as few and small vectors as fields have, faster than the fused kernel.
        # Fields last and scores by key, then query: with heads of 8 dims the order in which torch's
        # products and its softmax are quickest on a CPU, with wider ones about level.
        weights_XNN = torch.softmax(k_XdN.transpose(1, 2) @ q_XdN, dim=1)
        attended_BDN = (v_XdN @ weights_XNN).view(num_rows, self.out_dim, num_fields)
        return torch.relu(linear(x_BNI, residual) + attended_BDN.transpose(1, 2))


class AutoInt(nn.Module):
    """AutoInt (Song et al., 2019): the fields after attention side by side, and an MLP's output.

    Shape:
        x_BF -> (B, N * H * d + last hidden dim, if there is one).
    """

    def __init__(self, config: AutoIntConfig, feature_dims: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.fields = FieldVectors(feature_dims, config.field_dim, model="AutoInt")
        width = config.num_heads * config.head_dim
        layers: list[nn.Module] = [
            InteractingLayer(
                width if at else self.fields.dim,
                num_heads=config.num_heads,
                head_dim=config.head_dim,
            )
            for at in range(config.num_layers)
        ]
        self.out_dim = self.fields.num_fields * width
        if config.hidden_dims:
            in_dim = sum(feature_dims.values())
            layers.append(mlp(in_dim, config.hidden_dims, dropout=config.dropout))
            self.out_dim += config.hidden_dims[-1]
        self.blocks = nn.ModuleList(layers)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, out_dim)."""
        x_BND = self.fields(x_BF)
        for layer in self.blocks[: self.config.num_layers]:
            x_BND = layer(x_BND)
        parts = [x_BND.flatten(1)]
        parts += [deep(x_BF) for deep in self.blocks[self.config.num_layers :]]
        return torch.cat(parts, dim=1)
