"""A stack of linear layers, the piece that most towers share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int | None = None, *, dropout: float = 0.0
) -> nn.Sequential:
    """Linear and ReLU layers; with `out_dim`, a last linear layer without activation.

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        out_dim: width of a last layer without activation, or None.
        dropout: after each hidden layer.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_dim = width
    if out_dim is not None:
        layers.append(nn.Linear(in_dim, out_dim))
    return nn.Sequential(*layers)
