"""What every interaction architecture offers, so that a new one is one new file.

Legend: B impressions, F features side by side.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class Tower(Protocol):
    """A module from the concatenated features of an impression to one vector.

    Attributes:
        out_dim: width of the output, which task heads read.
        blocks: its layers in order; each is a unit of sharding (FSDP), checkpointing and
            compilation.

    Shape:
        x_BF -> (B, out_dim).
    """

    out_dim: int
    blocks: nn.ModuleList

    def __call__(self, x_BF: Tensor) -> Tensor:
        """(B, F) -> (B, out_dim)."""
        ...


@runtime_checkable
class TowerConfig(Protocol):
    """The sizes of a tower: a frozen dataclass beside the tower that it builds.

    An experiment names the class, so nothing has to be registered. It holds methods alone: the
    command line can then tell which class it narrows a field of this type to.
    """

    def build(self, feature_dims: dict[str, int]) -> Tower:
        """The tower over features of these dims, which it takes side by side in this order."""
        ...


@runtime_checkable
class RegularizedTower(Protocol):
    """A tower that adds a term of its own to the loss."""

    def auxiliary_loss(self) -> Tensor:
        """Scalar of the last training forward pass, weighted; called once a step."""
        ...


@runtime_checkable
class MeasuredTower(Protocol):
    """A tower that has numbers of its own to log."""

    def measures(self) -> dict[str, float]:
        """By name, of the last training forward pass; the same on every rank."""
        ...


@runtime_checkable
class TowerWithTurns(Protocol):
    """A tower of which a part and the rest of the network learn in turn, not at the same time."""

    def parameters_with_turns(self) -> list[nn.Parameter]:
        """The part."""
        ...

    def is_their_turn(self, step: int) -> bool:
        """Whether the part learns in this step (counted from 0) and the rest of the network waits.

        In all other steps the part waits.
        """
        ...
