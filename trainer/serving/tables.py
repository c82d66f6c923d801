"""Embedding tables for scoring: TorchRec's quantised collections, each row with a scale.

A value of an `int8` or `int4` row is shift + scale * step, step being one of 256 or 16 between the
row's least and greatest value; scale and shift of a row are fp16 and stand beside it. FBGEMM's
inference kernels look rows up and give fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import (
    DATA_TYPE_NUM_BITS,
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
)
from torchrec.quant.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from sharding.tables import TableSpec
from trainer.serving.folder import ServingError

RowKind = Literal["fp32", "fp16", "int8", "int4"]
"""How a row is stored. The two integer kinds have a scale and a shift of their own for each row."""

_DATA_TYPES: Final[dict[RowKind, DataType]] = {
    "fp32": DataType.FP32,
    "fp16": DataType.FP16,
    "int8": DataType.INT8,
    "int4": DataType.INT4,
}
_SCALED = ("int8", "int4")
_SCALE_BYTES = 4
_BLOCK_ROWS = 1 << 18

StoredRows = tuple[Tensor, Tensor | None]
"""uint8 (rows, bytes of a row), and uint8 (rows, 4) of scales and shifts for the integer kinds."""


def stored_shapes(
    table: TableSpec, kind: RowKind
) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """Shapes of what `quantize` gives for a table."""
    row_bytes = table.dim * DATA_TYPE_NUM_BITS[_DATA_TYPES[kind]] // 8
    scales = (table.rows, _SCALE_BYTES) if kind in _SCALED else None
    return (table.rows, row_bytes), scales


def quantize(weight_RD: Tensor, kind: RowKind) -> StoredRows:
    """Rows (R, D) of floats as bytes.

    Args:
        weight_RD: fp32 or fp16.
        kind: how to store them.
    """
    weight_RD = weight_RD.contiguous()
    if kind not in _SCALED:
        dtype = torch.float32 if kind == "fp32" else torch.float16
        return weight_RD.to(dtype).view(torch.uint8), None
    bits = DATA_TYPE_NUM_BITS[_DATA_TYPES[kind]]
    fused = torch.cat(
        [
            torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf(block.float(), bits)
            for block in weight_RD.split(_BLOCK_ROWS)
        ]
    )
    return fused[:, :-_SCALE_BYTES].contiguous(), fused[:, -_SCALE_BYTES:].contiguous()


class ServingTables(nn.Module):
    """Looks up pooled features and the identity of items, as `SparseArch` does in training.

    Managed tables are plain ones here: their ids come as rows.

    Args:
        tables: every table.
        kind: how rows are stored.
        rows: of each table, by name.

    Raises:
        ServingError: naming a table whose rows do not have its shape.
    """

    def __init__(
        self, tables: Sequence[TableSpec], kind: RowKind, rows: Mapping[str, StoredRows]
    ) -> None:
        super().__init__()
        for table in tables:
            values, scales = rows[table.name]
            found = (tuple(values.shape), None if scales is None else tuple(scales.shape))
            if found != stored_shapes(table, kind):
                raise ServingError(
                    f"table {table.name!r}: rows and scales of shapes {found}, expected "
                    f"{stored_shapes(table, kind)} for {table.rows} {kind} rows of {table.dim}"
                )
        self.pooled = _bags([t for t in tables if t.pooling != "none"], kind, rows)
        items = [table for table in tables if table.pooling == "none"]
        # An EmbeddingCollection wants one dim for all of its tables.
        self.items = nn.ModuleList(
            _sequences([table for table in items if table.dim == dim], kind, rows)
            for dim in sorted({table.dim for table in items})
        )

    def forward(
        self, pooled: KeyedJaggedTensor, items: KeyedJaggedTensor
    ) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """Pooled embeddings (B, sum of dims) and the embeddings of each distinct item's ids."""
        if self.pooled is None:
            by_feature = KeyedTensor([], [], torch.zeros(pooled.stride(), 0))
        else:
            by_feature = self.pooled(pooled)
        found: dict[str, JaggedTensor] = {}
        for collection in self.items:
            found |= collection(items)
        return by_feature, found


def _bags(
    tables: Sequence[TableSpec], kind: RowKind, rows: Mapping[str, StoredRows]
) -> EmbeddingBagCollection | None:
    if not tables:
        return None
    configs = []
    for table in tables:
        config = replace(table.to_config(), data_type=_DATA_TYPES[kind])
        assert isinstance(config, EmbeddingBagConfig)
        configs.append(config)
    collection = EmbeddingBagCollection(
        configs,
        is_weighted=False,
        device=torch.device("cpu"),
        table_name_to_quantized_weights={table.name: rows[table.name] for table in tables},
        row_alignment=1,  # the CPU needs no padding between rows
    )
    collection._table_name_to_quantized_weights = None  # else the rows are in memory twice
    return collection


def _sequences(
    tables: Sequence[TableSpec], kind: RowKind, rows: Mapping[str, StoredRows]
) -> EmbeddingCollection:
    configs = []
    for table in tables:
        config = replace(table.to_config(), data_type=_DATA_TYPES[kind])
        assert isinstance(config, EmbeddingConfig)
        configs.append(config)
    collection = EmbeddingCollection(
        configs,
        device=torch.device("cpu"),
        table_name_to_quantized_weights={table.name: rows[table.name] for table in tables},
        row_alignment=1,
    )
    collection._table_name_to_quantized_weights = None
    return collection
