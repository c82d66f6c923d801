"""Parallel semantic IDs stand for an item: their embeddings side by side, nothing mixed.

Legend: U distinct items, L semantic IDs of an item, d table dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor

from trainer.modules.hybrid_tokens import GEN_TOKEN, HybridTokensConfig, ItemIdConfig


@dataclass(frozen=True, kw_only=True)
class ParallelTokensConfig:
    """An item is the embeddings of its L codes side by side (STORE section 2.1, s_1 to s_K).

    A tower reads `candidate` as L vectors of d values; towers that know nothing of that read one
    vector. History items are represented alike.

    Args:
        num_levels: L.
        table_dim: d, dim of the table of (code position, code).
        dropout: on the embeddings.
    """

    num_levels: int
    table_dim: int
    dropout: float = 0.0

    gen_tokens: ClassVar[bool] = True
    mem_tokens: ClassVar[bool] = False
    residual_id_dim: ClassVar[int | None] = None

    @property
    def item_dim(self) -> int:
        """L * d, dim of the item vector that the network sees."""
        return self.num_levels * self.table_dim

    @property
    def table_dims(self) -> dict[str, int]:
        """Key of the item KeyedJaggedTensor -> dim of its table."""
        return {GEN_TOKEN: self.table_dim}

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the item KeyedJaggedTensor."""
        return tuple(self.table_dims)

    def build(self) -> ParallelTokens:
        """The module."""
        return ParallelTokens(self)


class ParallelTokens(nn.Module):
    """Code embeddings side by side, in the order of the codes."""

    def __init__(self, config: ParallelTokensConfig) -> None:
        super().__init__()
        self.item_dim = config.item_dim
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, items: dict[str, JaggedTensor]) -> Tensor:
        """One vector per distinct item (U, L d)."""
        side_by_side: Tensor = self.dropout(items[GEN_TOKEN].values().view(-1, self.item_dim))
        return side_by_side


TokenItemConfig = HybridTokensConfig | ParallelTokensConfig
"""What stands for an item, where that is tokens."""
ItemConfig = ItemIdConfig | TokenItemConfig
"""What stands for an item."""
