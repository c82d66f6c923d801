"""DIG's VQ encoder: a transformer over the static features of an item.

Legend: N items of the catalogue, M items that are encoded, F fields, D dim, E width of texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.modules.per_token import PerTokenLinear
from trainer.modules.transformer_block import TransformerBlock

_SMALLEST_SCALE = 1e-6  # of numbers that are all alike


class StaticFeatures(NamedTuple):
    """Static features of all items, in the order of items.parquet.

    Attributes:
        ids: field -> values and offsets (N + 1) of a list of ids an item, int64.
        dense_NF: float32 numbers as the log has them, (N, 0) without any.
        text_NE: float32 text embeddings as they were made, (N, 0) without any.
    """

    ids: Mapping[str, tuple[Tensor, Tensor]]
    dense_NF: Tensor
    text_NE: Tensor

    @property
    def num_items(self) -> int:
        """N."""
        return self.dense_NF.shape[0]


class VQEncoder(nn.Module):
    """`e_v = Enc(x_v^s)` (DIG Eq. 1): each field a token, a part of e_v for each token.

    e_v has mean 0 and length 1: were its scale free, commitment would shrink it step by step, and
    the batch normalization behind it would hide that.

    Numbers are standardized, and texts by one mean a dimension and one scale. These are of the
    catalogue that training began with, and in every checkpoint: an item that comes later is encoded
    by them, and moves no other item's SID.

    Args:
        config: fields and sizes.

    Shape:
        item rows (M,) -> (M, D).
    """

    dense_NF: Tensor
    text_NE: Tensor
    dense_mean_F: Tensor
    dense_scale_F: Tensor
    text_mean_E: Tensor
    text_scale: Tensor

    def __init__(self, config: LearnedTokensConfig) -> None:
        super().__init__()
        self.config = config
        dim, num_fields = config.dim, len(config.field_names)
        self.tables = nn.ModuleList(nn.EmbeddingBag(field.rows, dim) for field in config.fields)
        self.dense = nn.Linear(len(config.dense_columns), dim) if config.dense_columns else None
        self.text = (
            nn.Linear(config.text_dim, config.text_fields * dim) if config.text_dim else None
        )
        self.blocks = nn.ModuleList(
            TransformerBlock(dim=dim, num_heads=config.num_heads, hidden_dim=4 * dim)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.project = PerTokenLinear(num_fields, dim, config.field_dim)
        # The catalogue is data, not weights: no checkpoint holds it.
        for number in range(len(config.fields)):
            self.register_buffer(f"values_{number}", torch.zeros(0).long(), persistent=False)
            self.register_buffer(f"offsets_{number}", torch.zeros(1).long(), persistent=False)
        self.register_buffer("dense_NF", torch.zeros(0, len(config.dense_columns)), False)
        self.register_buffer("text_NE", torch.zeros(0, config.text_dim), False)
        self.register_buffer("dense_mean_F", torch.zeros(len(config.dense_columns)))
        self.register_buffer("dense_scale_F", torch.ones(len(config.dense_columns)))
        self.register_buffer("text_mean_E", torch.zeros(config.text_dim))
        self.register_buffer("text_scale", torch.ones(1))

    @property
    def num_items(self) -> int:
        """N; 0 before `take_catalogue`."""
        return self.dense_NF.shape[0]

    def take_catalogue(self, features: StaticFeatures) -> None:
        """Encode these items from now on.

        Means and scales are taken of them too; a checkpoint that is loaded afterwards brings those
        of its training.

        Raises:
            ValueError: when the text embeddings have another width than the configuration says.
        """
        if features.text_NE.shape[1] != self.config.text_dim:
            raise ValueError(
                f"model.item.text_dim is {self.config.text_dim}, but the items' embeddings have "
                f"{features.text_NE.shape[1]} dimensions; set text_dim to that"
            )
        device = self.dense_NF.device
        for number, field in enumerate(self.config.fields):
            values, offsets = features.ids[field.name]
            setattr(self, f"values_{number}", values.to(device))
            setattr(self, f"offsets_{number}", offsets.to(device))
        self.dense_NF = features.dense_NF.to(device)
        self.text_NE = features.text_NE.to(device)
        if self.dense is not None:
            self.dense_mean_F.copy_(self.dense_NF.mean(dim=0))
            self.dense_scale_F.copy_(self.dense_NF.std(dim=0, correction=0) + _SMALLEST_SCALE)
        if self.text is not None:
            self.text_mean_E.copy_(self.text_NE.mean(dim=0))
            spread = (self.text_NE - self.text_mean_E).square().mean().sqrt()
            self.text_scale.copy_(spread.clamp_min(_SMALLEST_SCALE))

    def forward(self, rows_M: Tensor) -> Tensor:
        """Encode the items of these rows."""
        tokens = [self._pooled(number, rows_M).unsqueeze(1) for number in range(len(self.tables))]
        if self.dense is not None:
            dense_MF = self.dense_NF.index_select(0, rows_M) - self.dense_mean_F
            tokens.append(self.dense(dense_MF / self.dense_scale_F).unsqueeze(1))
        if self.text is not None:
            text_ME = self.text_NE.index_select(0, rows_M) - self.text_mean_E
            tokens.append(self.text(text_ME / self.text_scale).unflatten(1, (-1, self.config.dim)))
        x_MFD = torch.cat(tokens, dim=1)
        for block in self.blocks:
            x_MFD = block(x_MFD)
        e_MD = self.project(self.norm(x_MFD)).flatten(1)
        dim = e_MD.shape[1]
        return nn.functional.layer_norm(e_MD, (dim,)) * dim**-0.5

    def _pooled(self, number: int, rows_M: Tensor) -> Tensor:
        """Mean embedding of each item's ids of one field; zeros for an item without any."""
        table, values = self.tables[number], getattr(self, f"values_{number}")
        assert isinstance(table, nn.EmbeddingBag)
        offsets = getattr(self, f"offsets_{number}")
        first = offsets.index_select(0, rows_M)
        length = offsets.index_select(0, rows_M + 1) - first
        begin = length.cumsum(0) - length
        at = torch.repeat_interleave(first - begin, length)
        at = at + torch.arange(len(at), device=at.device)
        return embedding_bag(values.index_select(0, at), table.weight, begin, mode="mean")
