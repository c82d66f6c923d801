"""What stands for an item: its ID, its gen-tokens, or gen- and mem-tokens together.

Legend: U distinct items, L levels, d table dim, D item dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.modules.mlp import mlp

ITEM_ID: Final = "item_id"
GEN_TOKEN: Final = "gen_token"
MEM_TOKEN: Final = "mem_token"


@dataclass(frozen=True, kw_only=True)
class ItemIdConfig:
    """An item is its ID.

    Args:
        table_dim: d, dim of the ID table.
        item_dim: D, dim of the item vector that the network sees.
        hidden_dims: hidden layers between table and item vector.
        dropout: after each hidden layer.
    """

    table_dim: int
    item_dim: int
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the item KeyedJaggedTensor."""
        return (ITEM_ID,)

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
    """An item is its tokens (TRM section 3.2).

    Args:
        num_levels: L, gen-tokens of an item.
        table_dim: d, dim of the gen- and mem-token tables.
        item_dim: D, dim of the item vector that the network sees.
        hidden_dims: hidden layers of the deep side.
        dropout: on the deep side's input, so that it does not overfit.
        gen_tokens: False leaves gen-tokens out: the sum of the mem-tokens is then what the deep
            side reads, and there is no wide side (SEMID: prefix-n-grams, summed).
        mem_tokens: False leaves the wide side out (gen-tokens only).

    Raises:
        ValueError: when an item would have no tokens at all.
    """

    num_levels: int
    table_dim: int
    item_dim: int
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0
    gen_tokens: bool = True
    mem_tokens: bool = True

    def __post_init__(self) -> None:
        """Check that something stands for an item."""
        if not (self.gen_tokens or self.mem_tokens):
            raise ValueError(
                "model.item: gen_tokens and mem_tokens are both False, so nothing would stand for "
                "an item; expected at least one of them to be True"
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the item KeyedJaggedTensor."""
        sides = ((GEN_TOKEN, self.gen_tokens), (MEM_TOKEN, self.mem_tokens))
        return tuple(key for key, is_read in sides if is_read)

    def build(self) -> HybridTokens:
        """The module."""
        return HybridTokens(self)


class HybridTokens(nn.Module):
    """Wide & Deep over an item's tokens (TRM section 3.2, Figure 2).

    Deep: the L gen-token embeddings side by side, dropout, MLP: what items share. Wide: the sum of
    the mem-token embeddings through one linear layer: what a combination of tokens means on its
    own. The two sides are added, for the candidate and for history items alike. Without gen-tokens
    the sum of the mem-tokens takes the deep side's place.
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

    def forward(self, items: dict[str, JaggedTensor]) -> Tensor:
        """One vector per distinct item (U, D)."""
        if not self.config.gen_tokens:
            return self.deep(self.dropout(sum_by_item(items[MEM_TOKEN])))
        item_UD = self.deep(self.dropout(items[GEN_TOKEN].values().view(-1, self.gen_width)))
        if self.wide is not None:
            item_UD = item_UD + self.wide(sum_by_item(items[MEM_TOKEN]))
        return item_UD


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
