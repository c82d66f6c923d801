"""One record per embedding table: trainers build it, planners place it, reports count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.optim import Optimizer
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams, ShardingType
from torchrec.modules.embedding_configs import (
    DataType,
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.optim.optimizers import PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from sharding.managed_ids import ManagedIds

TableRole = Literal["item_id", "gen_token", "mem_token", "residual_id", "side"]
"""What the rows stand for. `residual_id`: users, queries and every other ID that stays."""

Pooling = Literal["sum", "mean", "none"]
"""`none` keeps one vector per id: the table goes to an EmbeddingCollection (EC)."""

TableOptimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "partial_rowwise_adam"]
TableDType = Literal["fp32", "fp16", "bf16", "int8"]
TableKernel = Literal["fused", "fused_uvm", "fused_uvm_caching", "key_value"]
"""Where rows live: device memory; host memory; host memory with a device cache; SSD."""

OPTIMIZER_CLASSES: dict[TableOptimizer, type[Optimizer]] = {
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "partial_rowwise_adam": PartialRowWiseAdam,
}
"""The class that TorchRec translates into a fused optimizer."""

DEFAULT_CACHE_LOAD_FACTOR = 0.2
_DATA_TYPES: dict[TableDType, DataType] = {
    "fp32": DataType.FP32,
    "fp16": DataType.FP16,
    "bf16": DataType.BF16,
    "int8": DataType.INT8,
}
_BYTES_PER_VALUE: dict[TableDType, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_INT8_ROW_BYTES = 8
"""Scale and shift that FBGEMM keeps in each int8 row."""
_NOT_BY_DEFAULT = ("data_parallel", "grid_shard")
_ROWS_SPLIT = ("row_wise", "table_row_wise", "grid_shard")
"""TorchRec 1.8 divides the sums of mean-pooled tables that are split by rows in a step of its own,
which takes the wrong lengths beside tables sharded in other ways, and always under grid sharding:
results are wrong without an error."""
_MANAGED_TYPES, _MANAGED_KERNELS = ("row_wise",), ("fused",)
"""TorchRec splits managed tables by rows only, and their rows are reset in the TBE's own memory."""
_CPU_DTYPES = ("fp32", "fp16")
_CPU_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd")
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
        pooling: how the ids of one bag are joined; `none` for sequences. A `mean` table is never
            split by rows (TorchRec averages wrongly there).
        dtype: of the weights. Optimizer state is always fp32.
        optimizer: fused into the backward pass.
        sharding_types: TorchRec sharding types the planner may choose from; None for all but
            `grid_shard`.
        kernels: where rows may live; None for every place but the SSD (`key_value`).
        cache_load_factor: share of the rows cached on the device (`fused_uvm_caching`); None for
            a fifth.
        pooling_factors: ids of each feature per impression, on average; None for one.
        init_std: standard deviation of the initial weights.
        managed: rows are given to ids of any size while training, and taken back; None when ids
            are rows. Managed tables are row-wise, in device memory, with `pooling="none"`.
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
    kernels: tuple[TableKernel, ...] | None = None
    cache_load_factor: float | None = None
    pooling_factors: tuple[float, ...] | None = None
    init_std: float = 0.01
    managed: ManagedIds | None = None

    def __post_init__(self) -> None:
        """Check the table on its own.

        Raises:
            ValueError: naming the table, the field, what was found and what is expected.
        """
        if hasattr(torch.nn.ModuleDict, self.name):
            raise ValueError(
                f"table {self.name!r}: TorchRec keeps tables in a torch.nn.ModuleDict, whose own "
                f"attribute {self.name!r} is; choose another name"
            )
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
        if self.pooling == "mean" and (split := set(_ROWS_SPLIT) & set(self.sharding_types or ())):
            raise ValueError(
                f"table {self.name!r}: pooling is 'mean' and sharding_types holds "
                f"{', '.join(sorted(split))}, under which TorchRec averages wrongly; pool by "
                "'sum', or take them out of sharding_types"
            )
        self._check_placement()
        if self.managed is not None:
            self._check_managed()

    def _check_managed(self) -> None:
        if self.pooling != "none":
            raise ValueError(
                f"table {self.name!r}: managed is set and pooling is {self.pooling!r}; only "
                "sequence tables (pooling 'none') are managed"
            )
        if self.dtype == "int8":
            raise ValueError(
                f"table {self.name!r}: managed is set and dtype is 'int8', whose rows can't be "
                "reset one by one; expected fp32, fp16 or bf16"
            )
        if self.cache_load_factor is not None:
            raise ValueError(
                f"table {self.name!r}: managed is set, so rows lie in device memory and "
                "cache_load_factor would have no effect; leave it None"
            )
        for field, allowed in (
            ("sharding_types", _MANAGED_TYPES),
            ("kernels", _MANAGED_KERNELS),
        ):
            value = getattr(self, field)
            if value is not None and tuple(value) != allowed:
                raise ValueError(
                    f"table {self.name!r}: managed is set and {field} is {value}; managed tables "
                    f"run with {field}={allowed} alone"
                )

    def _check_placement(self) -> None:
        if unknown := sorted(set(self.kernels or ()) - set(get_args(TableKernel))):
            raise ValueError(
                f"table {self.name!r}: kernels holds {', '.join(unknown)}, expected some of "
                f"{', '.join(get_args(TableKernel))}"
            )
        if self.cache_load_factor is not None:
            if not 0 < self.cache_load_factor <= 1:
                raise ValueError(
                    f"table {self.name!r}: cache_load_factor is {self.cache_load_factor}, "
                    "expected more than 0 and at most 1"
                )
            if self.kernels is not None and "fused_uvm_caching" not in self.kernels:
                raise ValueError(
                    f"table {self.name!r}: cache_load_factor is set, but kernels is "
                    f"{self.kernels}, so it would have no effect; add 'fused_uvm_caching'"
                )
        factors = self.pooling_factors
        if factors is not None and (len(factors) != len(self.features) or min(factors) < 0):
            raise ValueError(
                f"table {self.name!r}: pooling_factors is {factors}, expected a number of at "
                f"least 0 for each of the {len(self.features)} features"
            )

    @property
    def num_parameters(self) -> int:
        """Weights in the table."""
        return self.rows * self.dim

    @property
    def num_bytes(self) -> int:
        """Bytes that serving needs: weights, and a managed table's map from ids to rows."""
        return self.shard_bytes(self.rows, self.dim)

    @property
    def num_state_bytes(self) -> int:
        """Bytes of optimizer state in an unsharded table (fp32)."""
        return self.shard_state_bytes(self.rows, self.dim)

    def shard_bytes(self, rows: int, columns: int) -> int:
        """Bytes of the weights of a shard, and of its map where the table is managed."""
        per_row = columns * _BYTES_PER_VALUE[self.dtype]
        if self.dtype == "int8":
            per_row += _INT8_ROW_BYTES
        return rows * per_row + (self.managed.map_bytes(rows) if self.managed else 0)

    def shard_state_bytes(self, rows: int, columns: int) -> int:
        """Bytes of optimizer state of a shard; row-wise kinds keep it in every column shard."""
        return 4 * self._state_values(rows, columns)

    @property
    def replicated_state_bytes(self) -> int:
        """Bytes of state of a data-parallel table: torch keeps it in the weights' dtype."""
        return _BYTES_PER_VALUE[self.dtype] * self._state_values(self.rows, self.dim)

    def _state_values(self, rows: int, columns: int) -> int:
        values = {
            "rowwise_adagrad": rows,
            "adagrad": rows * columns,
            "sgd": 0,
            "adam": 2 * rows * columns,
            "partial_rowwise_adam": rows * columns + rows,
        }
        return values[self.optimizer]

    @property
    def may_be_replicated(self) -> bool:
        """Whether the table can be data-parallel: a dense parameter with a dense optimizer."""
        return self.optimizer != "partial_rowwise_adam" and self.dtype != "int8"

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
    return {table.name: _constraints(table, min_partition) for table in tables}


def _constraints(table: TableSpec, min_partition: int) -> ParameterConstraints:
    # A data-parallel table is a dense parameter on the device: allowed where `fused` is.
    kernels: list[str] | None = None if table.kernels is None else [*table.kernels]
    if kernels is not None and "fused" in kernels:
        kernels.append("dense")
    if table.managed is not None:
        kernels = [*_MANAGED_KERNELS]
    optional: dict[str, Any] = {}
    if table.pooling_factors is not None:
        optional["pooling_factors"] = list(table.pooling_factors)
    if table.cache_load_factor is not None:
        optional["cache_params"] = CacheParams(load_factor=table.cache_load_factor)
    types = table.sharding_types if table.managed is None else _MANAGED_TYPES
    if types is None and not table.may_be_replicated:
        types = tuple(t.value for t in ShardingType if t.value not in _NOT_BY_DEFAULT)
    if table.pooling == "mean":
        every = tuple(t.value for t in ShardingType)
        types = tuple(t for t in types or every if t not in _ROWS_SPLIT)
    return ParameterConstraints(
        sharding_types=list(types) if types else None,
        compute_kernels=kernels,
        min_partition=min_partition if table.dim > min_partition else None,
        **optional,
    )


def check_device(tables: Sequence[TableSpec], device: str) -> None:
    """Check that FBGEMM has the kernels that the tables ask for.

    Args:
        tables: the tables.
        device: `cuda` or `cpu`.

    Raises:
        ValueError: naming the table, what it asks for, and what there is.
    """
    for table in tables:
        if "data_parallel" in (table.sharding_types or ()) and not table.may_be_replicated:
            raise ValueError(
                f"table {table.name!r}: {table.optimizer} on {table.dtype} rows exists as a fused "
                "kernel alone, which data-parallel tables do not use; take 'data_parallel' out of "
                "sharding_types"
            )
        if device != "cpu":
            continue
        if table.optimizer not in _CPU_OPTIMIZERS:
            raise ValueError(
                f"table {table.name!r}: FBGEMM has no CPU kernel for optimizer "
                f"{table.optimizer!r}; there are {', '.join(_CPU_OPTIMIZERS)} (plan for GPUs, or "
                "choose one of these)"
            )
        if table.dtype not in _CPU_DTYPES:
            raise ValueError(
                f"table {table.name!r}: FBGEMM has no CPU kernel that trains {table.dtype} rows; "
                f"there are {', '.join(_CPU_DTYPES)}"
            )
        if table.kernels is not None and "fused" not in table.kernels:
            raise ValueError(
                f"table {table.name!r}: kernels is {table.kernels}, which exist on GPUs alone; "
                "on the CPU rows live in host memory: add 'fused'"
            )


def check_managed_rows(tables: Sequence[TableSpec], num_ranks: int) -> None:
    """Check that every rank's part of a managed table has a row to give and one to share.

    Raises:
        ValueError: naming the table, its rows and the ranks.
    """
    for table in tables:
        last_part = table.rows - -(-table.rows // num_ranks) * (num_ranks - 1)
        if table.managed is not None and last_part < 2:
            raise ValueError(
                f"table {table.name!r}: {table.rows} managed rows over {num_ranks} ranks leave "
                f"{max(0, last_part)} to the last one, expected at least 2 (one is shared by ids "
                "without a row); give it more rows"
            )


def parameters_by_role(tables: Sequence[TableSpec]) -> dict[TableRole, int]:
    """Number of weights by role; every role is present."""
    counts: dict[TableRole, int] = dict.fromkeys(get_args(TableRole), 0)
    for table in tables:
        counts[table.role] += table.num_parameters
    return counts
