"""Low-rank updates of the linear layers of a frozen model (LoRA, Hu et al.)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained update of low rank, zero at the start (Hu et al.).

    Args:
        linear: the layer.
        rank: of the update.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """The layer and its update."""
        updated: Tensor = self.linear(x) + (x @ self.down.T) @ self.up.T
        return updated

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the layer's weight."""
        self.linear.weight += self.up @ self.down


def add_lora(model: nn.Module, rank: int) -> list[LoRALinear]:
    """Freeze the model and wrap its linear layers, except the output layer; return the wraps.

    Raises:
        ValueError: a model without linear layers to wrap.
    """
    model.requires_grad_(False)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    wraps = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not output:
                wrap = LoRALinear(child, rank)
                setattr(module, name, wrap)
                wraps.append(wrap)
    if not wraps:
        raise ValueError("lora_rank: expected linear layers in the model, found none; train all")
    return wraps


def remove_lora(model: nn.Module) -> None:
    """Put the (merged) linear layers back in the places of their wraps."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                setattr(module, name, child.linear)
