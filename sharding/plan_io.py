"""A sharding plan as JSON, and back.

`plan.json` of a run holds what `plan_to_json` gives. `farewell plan` writes the same under
`modules`, with the tables and the number of ranks beside it, so that a run that differs is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.distributed._shard.metadata import ShardMetadata
from torchrec.distributed.sharding_plan import placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)

from sharding.fast_planner import module_path
from sharding.sharders import sharder_of
from sharding.tables import TableSpec

_CHECKED_FIELDS = ("rows", "dim", "dtype", "optimizer")


class PlanMismatchError(ValueError):
    """A plan was made for other tables, ranks or devices."""


def plan_to_json(plan: ShardingPlan) -> dict[str, Any]:
    """Module path -> table -> sharding type, kernel, ranks and shards.

    A shard is `{"rows": [first, number], "columns": [first, number], "rank": r}`.
    """
    return {
        path: {table: _table_to_json(parameter) for table, parameter in module.items()}
        for path, module in plan.plan.items()
    }


def plan_file(plan: ShardingPlan, tables: Sequence[TableSpec], num_ranks: int) -> dict[str, Any]:
    """What `farewell plan` writes: the plan and what it was made for."""
    return {
        "num_ranks": num_ranks,
        "tables": {
            table.name: {field: getattr(table, field) for field in _CHECKED_FIELDS}
            for table in tables
        },
        "modules": plan_to_json(plan),
    }


def given_plan(values: Mapping[str, Any], num_ranks: int) -> dict[str, Any]:
    """What `plan_file` or `plan_to_json` gave, with the number of ranks that is to execute it."""
    if "modules" in values:
        return dict(values)
    return {"num_ranks": num_ranks, "modules": dict(values)}


def plan_from_json(
    values: Mapping[str, Any],
    tables: Sequence[TableSpec],
    *,
    num_ranks: int,
    ranks_per_node: int,
    device: str,
) -> ShardingPlan:
    """TorchRec's plan from what `plan_file` or `plan_to_json` gave.

    Args:
        values: the JSON.
        tables: of the model that is to be sharded.
        num_ranks: of the run.
        ranks_per_node: of the run.
        device: of the run, `cuda` or `cpu`.

    Raises:
        PlanMismatchError: naming the table and both values.
    """
    made_for = values.get("num_ranks", num_ranks)
    if made_for != num_ranks:
        raise PlanMismatchError(
            f"the plan is for {made_for} ranks, this run has {num_ranks}; plan again with "
            "`farewell plan` for as many ranks, or start as many"
        )
    modules = values.get("modules", values)
    planned = {name: (path, entry) for path in modules for name, entry in modules[path].items()}
    by_name = {table.name: table for table in tables}
    if set(planned) != set(by_name):
        raise PlanMismatchError(
            f"plan and model differ in tables: only in the plan: "
            f"{sorted(set(planned) - set(by_name)) or 'none'}; only in the model: "
            f"{sorted(set(by_name) - set(planned)) or 'none'}"
        )
    result: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, (path, entry) in planned.items():
        table = by_name[name]
        _check(table, path, entry, values.get("tables", {}).get(name, {}), num_ranks, device)
        module = result.setdefault(path, EmbeddingModuleShardingPlan())
        module[name] = _table_from_json(table, entry, ranks_per_node, device)
    return ShardingPlan(dict(result))


def _check(
    table: TableSpec,
    path: str,
    entry: Mapping[str, Any],
    made_for: Mapping[str, Any],
    num_ranks: int,
    device: str,
) -> None:
    for field, value in made_for.items():
        if value != getattr(table, field):
            raise PlanMismatchError(
                f"table {table.name!r}: the plan is for {field} {value!r}, the model has "
                f"{getattr(table, field)!r}"
            )
    expected_path = module_path(table)
    if path != expected_path:
        raise PlanMismatchError(
            f"table {table.name!r}: the plan has it in {path!r}, the model in {expected_path!r}"
        )
    kind, kernel = entry["sharding_type"], entry["compute_kernel"]
    sharder = sharder_of(table)
    if kind not in sharder.sharding_types(device):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan shards it {kind}, which does not run on {device}"
        )
    if kernel not in sharder.compute_kernels(kind, device):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's kernel {kernel!r} does not run {kind} on {device}"
        )
    wrong = [rank for rank in entry["ranks"] if not 0 <= rank < num_ranks]
    everywhere = kind in (ShardingType.DATA_PARALLEL.value, ShardingType.ROW_WISE.value)
    if wrong or (everywhere and sorted(entry["ranks"]) != list(range(num_ranks))):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's ranks {entry['ranks']} are not those of a run "
            f"with {num_ranks} ranks ({kind})"
        )
    if kind == ShardingType.DATA_PARALLEL.value:
        return
    cells = sum(shard["rows"][1] * shard["columns"][1] for shard in entry["shards"])
    rows = max(sum(shard["rows"]) for shard in entry["shards"])
    columns = max(sum(shard["columns"]) for shard in entry["shards"])
    if (rows, columns, cells) != (table.rows, table.dim, table.num_parameters):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's shards make {rows} x {columns} with {cells} "
            f"weights, the model's table is {table.rows} x {table.dim}"
        )


def _table_to_json(parameter: Any) -> dict[str, Any]:
    shards = [] if parameter.sharding_spec is None else parameter.sharding_spec.shards
    return {
        "sharding_type": parameter.sharding_type,
        "compute_kernel": parameter.compute_kernel,
        "ranks": list(parameter.ranks or []),
        "shards": [
            {
                "rows": [shard.shard_offsets[0], shard.shard_sizes[0]],
                "columns": [shard.shard_offsets[1], shard.shard_sizes[1]],
                "rank": shard.placement.rank(),
            }
            for shard in shards
        ],
    }


def _table_from_json(
    table: TableSpec, entry: Mapping[str, Any], ranks_per_node: int, device: str
) -> ParameterSharding:
    spec = None
    if entry["shards"]:
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(
                    shard_offsets=[shard["rows"][0], shard["columns"][0]],
                    shard_sizes=[shard["rows"][1], shard["columns"][1]],
                    placement=placement(device, shard["rank"], ranks_per_node),
                )
                for shard in entry["shards"]
            ]
        )
    cached = entry["compute_kernel"] == "fused_uvm_caching"
    return ParameterSharding(
        sharding_type=entry["sharding_type"],
        compute_kernel=entry["compute_kernel"],
        ranks=list(entry["ranks"]),
        sharding_spec=spec,
        cache_params=CacheParams(load_factor=table.cache_load_factor)
        if cached and table.cache_load_factor is not None
        else None,
    )
