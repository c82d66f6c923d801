"""One record per embedding table: trainers build it, planners place it, reports count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ShardingType
from torchrec.modules.embedding_configs import (
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)

TableRole = Literal["item_id", "gen_token", "mem_token", "residual_id", "side"]
"""What the rows stand for. `residual_id`: users, queries and every other ID that stays."""

Pooling = Literal["sum", "mean", "none"]
"""`none` keeps one vector per id: the table goes to an EmbeddingCollection (EC)."""

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd"]
TableDType = Literal["fp32", "fp16"]

_DATA_TYPES: dict[TableDType, DataType] = {"fp32": DataType.FP32, "fp16": DataType.FP16}
_BYTES_PER_VALUE: dict[TableDType, int] = {"fp32": 4, "fp16": 2}
_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One embedding table.

    The same list of specs feeds the trainer (`EmbeddingBagCollection` for pooled tables,
    `EmbeddingCollection` for `pooling="none"`) and the dry run. Item-ID models and token models
    differ in these specs and their feature mapping, never in the tower.

    Args:
        name: of the table.
        rows: number of embeddings.
        dim: floats per embedding; TBE wants a multiple of 4.
        features: keys of the KeyedJaggedTensor that index this table.
        role: what the rows stand for; storage is reported by role.
        pooling: how the ids of one bag are joined; `none` for sequences.
        dtype: of the weights. Optimizer state is always fp32.
        optimizer: fused into the backward pass.
        sharding_types: TorchRec sharding types the planner may choose from; None for all.
        init_std: standard deviation of the initial weights.
    """

    name: str
    rows: int
    dim: int
    features: tuple[str, ...]
    role: TableRole
    pooling: Pooling = "sum"
    dtype: TableDType = "fp32"
    optimizer: TableOptimizer = "rowwise_adagrad"
    sharding_types: tuple[str, ...] | None = None
    init_std: float = 0.01

    def __post_init__(self) -> None:
        """Check the table on its own.

        Raises:
            ValueError: naming the table, the field, what was found and what is expected.
        """
        if self.rows < 1:
            raise ValueError(f"table {self.name!r}: rows is {self.rows}, expected at least 1")
        if self.dim < 4 or self.dim % 4:
            raise ValueError(
                f"table {self.name!r}: dim is {self.dim}, expected a positive multiple of 4 "
                "(FBGEMM's kernels read four floats at a time)"
            )
        if not self.features:
            raise ValueError(f"table {self.name!r}: features is empty, nothing would look it up")
        for field, allowed in (
            ("role", get_args(TableRole)),
            ("pooling", get_args(Pooling)),
            ("dtype", get_args(TableDType)),
            ("optimizer", get_args(TableOptimizer)),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"table {self.name!r}: {field} is {getattr(self, field)!r}, "
                    f"expected one of {', '.join(allowed)}"
                )
        known = {sharding_type.value for sharding_type in ShardingType}
        unknown = sorted(set(self.sharding_types or ()) - known)
        if unknown:
            raise ValueError(
                f"table {self.name!r}: sharding_types holds {', '.join(unknown)}, "
                f"expected some of {', '.join(sorted(known))}"
            )

    @property
    def num_parameters(self) -> int:
        """Weights in the table."""
        return self.rows * self.dim

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights, without optimizer state."""
        return self.num_parameters * _BYTES_PER_VALUE[self.dtype]

    @property
    def num_state_bytes(self) -> int:
        """Bytes of optimizer state in an unsharded table (fp32)."""
        values = {"rowwise_adagrad": self.rows, "adagrad": self.num_parameters, "sgd": 0}
        return 4 * values[self.optimizer]

    def to_config(self) -> EmbeddingBagConfig | EmbeddingConfig:
        """TorchRec's record of this table: an `EmbeddingConfig` when `pooling` is `none`."""
        arguments = {
            "name": self.name,
            "num_embeddings": self.rows,
            "embedding_dim": self.dim,
            "feature_names": list(self.features),
            "data_type": _DATA_TYPES[self.dtype],
            "init_fn": partial(torch.nn.init.normal_, std=self.init_std),
        }
        if self.pooling == "none":
            return EmbeddingConfig(**arguments)
        return EmbeddingBagConfig(pooling=_POOLING[self.pooling], **arguments)


def check_tables(tables: Sequence[TableSpec]) -> None:
    """Check that names and features are unique over a set of tables.

    Raises:
        ValueError: naming what stands twice.
    """
    for what, values in (
        ("table", [table.name for table in tables]),
        ("feature", [feature for table in tables for feature in table.features]),
    ):
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"tables: {what} named twice: {', '.join(repeated)}")


def planner_constraints(
    tables: Sequence[TableSpec], *, min_partition: int
) -> dict[str, ParameterConstraints]:
    """What the planner may choose for each table, by table name.

    Args:
        tables: the tables.
        min_partition: fewest columns of a column-wise shard.
    """
    return {
        table.name: ParameterConstraints(
            sharding_types=list(table.sharding_types) if table.sharding_types else None,
            min_partition=min_partition if table.dim > min_partition else None,
        )
        for table in tables
    }


def parameters_by_role(tables: Sequence[TableSpec]) -> dict[TableRole, int]:
    """Number of weights by role; every role is present."""
    counts: dict[TableRole, int] = dict.fromkeys(get_args(TableRole), 0)
    for table in tables:
        counts[table.role] += table.num_parameters
    return counts
