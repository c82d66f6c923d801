"""What stands for an item: its ID, its tokens, or tokens and for some items an ID besides.

Legend: U distinct items, L levels, d table dim, r residual-ID dim, D item dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.modules.mlp import mlp

ITEM_ID: Final = "item_id"
GEN_TOKEN: Final = "gen_token"
MEM_TOKEN: Final = "mem_token"

IdRows = Literal["own", "hashed", "managed"]
"""How items share the rows of an ID table: a row each, rows by hash, or rows that go to the ids
that are seen and leave those that are not (a managed table, `TableSpec.managed`)."""


@dataclass(frozen=True, kw_only=True)
class ItemIdConfig:
    """An item is its ID.

    Args:
        table_dim: d, dim of the ID table.
        item_dim: D, dim of the item vector that the network sees.
        hidden_dims: hidden layers between table and item vector.
        dropout: after each hidden layer.
        rows: how items share the rows of the ID table.
    """

    table_dim: int
    item_dim: int
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0
    rows: IdRows = "own"

    @property
    def table_dims(self) -> dict[str, int]:
        """Key of the item KeyedJaggedTensor -> dim of its table."""
        return {ITEM_ID: self.table_dim}

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the item KeyedJaggedTensor."""
        return tuple(self.table_dims)

    def build(self) -> ItemIdEncoder:
        """The module."""
        return ItemIdEncoder(self)


class ItemIdEncoder(nn.Module):
    """ID embedding -> MLP -> item vector."""

    def __init__(self, config: ItemIdConfig) -> None:
        super().__init__()
        self.config = config
        self.project = mlp(
            config.table_dim, config.hidden_dims, config.item_dim, dropout=config.dropout
        )

    def forward(self, items: dict[str, JaggedTensor]) -> Tensor:
        """One vector per distinct item (U, D)."""
        return self.project(items[ITEM_ID].values())


@dataclass(frozen=True, kw_only=True)
class HybridTokensConfig:
    """An item is its tokens (TRM section 3.2), and for some items a residual ID besides.

    Args:
        num_levels: L, gen-tokens of an item.
        table_dim: d, dim of the gen- and mem-token tables.
        item_dim: D, dim of the item vector that the network sees.
        hidden_dims: hidden layers of the deep side.
        dropout: on the deep side's input, so that it does not overfit.
        gen_tokens: False leaves gen-tokens out: the sum of the mem-tokens is then what the deep
            side reads, and there is no wide side (SEMID: prefix-n-grams, summed).
        mem_tokens: False leaves the wide side out (gen-tokens only).
        residual_id_dim: r, dim of a table of item IDs that is kept beside the tokens, on the way
            from IDs to tokens; None for tokens alone. The items most exposed in the training part
            have a row, the others none: they are their tokens. In a managed table
            (`TableSpec.managed`) traffic decides instead.
        positions: add a learned vector of its level to each gen-token (PE of TRM's Table 6).

    Raises:
        ValueError: when an item would have no tokens at all, or `positions` no gen-tokens.
    """

    num_levels: int
    table_dim: int
    item_dim: int
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0
    gen_tokens: bool = True
    mem_tokens: bool = True
    residual_id_dim: int | None = None
    positions: bool = False

    def __post_init__(self) -> None:
        """Check that something stands for an item."""
        if self.positions and not self.gen_tokens:
            raise ValueError(
                "model.item: positions is True but gen_tokens is False, so it would have no "
                "effect; set positions=False"
            )
        if not (self.gen_tokens or self.mem_tokens):
            raise ValueError(
                "model.item: gen_tokens and mem_tokens are both False, so nothing would stand for "
                "an item; expected at least one of them to be True"
            )

    @property
    def table_dims(self) -> dict[str, int]:
        """Key of the item KeyedJaggedTensor -> dim of its table."""
        dims = {}
        if self.gen_tokens:
            dims[GEN_TOKEN] = self.table_dim
        if self.mem_tokens:
            dims[MEM_TOKEN] = self.table_dim
        if self.residual_id_dim is not None:
            dims[ITEM_ID] = self.residual_id_dim
        return dims

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the item KeyedJaggedTensor."""
        return tuple(self.table_dims)

    def build(self) -> HybridTokens:
        """The module."""
        return HybridTokens(self)


class HybridTokens(nn.Module):
    """Wide & Deep over an item's tokens (TRM section 3.2, Figure 2).

    Deep: the L gen-token embeddings side by side, dropout, MLP: what items share. Wide: the sum of
    the mem-token embeddings through one linear layer: what a combination of tokens means on its
    own. The two sides are added, for the candidate and for history items alike. Without gen-tokens
    the sum of the mem-tokens takes the deep side's place. A residual ID is added like the wide
    side, through a layer that begins at zero, so that training begins at the token model.
    """

    def __init__(self, config: HybridTokensConfig) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.dropout)
        self.gen_width = config.num_levels * config.table_dim
        self.deep = mlp(
            self.gen_width if config.gen_tokens else config.table_dim,
            config.hidden_dims,
            config.item_dim,
        )
        self.wide = (
            nn.Linear(config.table_dim, config.item_dim, bias=False)
            if config.gen_tokens and config.mem_tokens
            else None
        )

        self.residual = (
            None
            if config.residual_id_dim is None
            else ZeroLinear(config.residual_id_dim, config.item_dim, bias=False)
        )
        self.positions = LevelPositions(self.gen_width) if config.positions else None

    def forward(self, items: dict[str, JaggedTensor]) -> Tensor:
        """One vector per distinct item (U, D)."""
        item_UD = self.deep(self.dropout(self._deep_input(items)))
        if self.wide is not None:
            item_UD = item_UD + self.wide(sum_by_item(items[MEM_TOKEN]))
        if self.residual is not None:
            item_UD = item_UD + self.residual(sum_by_item(items[ITEM_ID]))
        return item_UD

    def _deep_input(self, items: dict[str, JaggedTensor]) -> Tensor:
        if self.config.gen_tokens:
            gen_UF = items[GEN_TOKEN].values().view(-1, self.gen_width)
            return gen_UF if self.positions is None else self.positions(gen_UF)
        return sum_by_item(items[MEM_TOKEN])


class LevelPositions(nn.Module):
    """Adds a learned vector to the gen-tokens of each level; zero at the start.

    Args:
        width: of all levels side by side, L * d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position_F = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.position_F)

    def forward(self, gen_UF: Tensor) -> Tensor:
        """(U, L * d) -> (U, L * d)."""
        return gen_UF + self.position_F


class ZeroLinear(nn.Linear):
    """A linear layer that begins at zero: what it reads counts for nothing until it is trained."""

    def reset_parameters(self) -> None:
        """Zero weight and bias."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def sum_by_item(tokens: JaggedTensor) -> Tensor:
    """Sum the embeddings of each item's tokens: (total tokens, d) -> (U, d)."""
    lengths_U = tokens.lengths()
    values = tokens.values()
    item_of_token = torch.repeat_interleave(
        torch.arange(lengths_U.shape[0], device=values.device),
        lengths_U,
        output_size=values.shape[0],
    )
    summed = values.new_zeros(lengths_U.shape[0], values.shape[1])
    return summed.index_add(0, item_of_token, values)
