"""A sharding plan as JSON, and back.

`plan.json` of a run holds what `plan_to_json` gives. `farewell plan` writes the same under
`modules`, with the tables and the number of ranks beside it, so that a run that differs is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
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


def read_given_plan(path: Path, num_ranks: int) -> dict[str, Any]:
    """A file that holds what `plan_file` or `plan_to_json` gave, see :func:`given_plan`.

    Raises:
        PlanMismatchError: when it can't be read, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise PlanMismatchError(
            f"{path}: the plan can't be read ({error.strerror}); give the path of a plan that "
            "`farewell plan` has written"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PlanMismatchError(
            f"{path}: expected a plan as JSON, found something else ({error}); write it with "
            "`farewell plan`"
        ) from error
    if not isinstance(values, dict):
        raise PlanMismatchError(
            f"{path}: expected a JSON object (module -> table -> shards), found "
            f"{type(values).__name__}; write it with `farewell plan`"
        )
    return given_plan(values, num_ranks)


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
    try:
        return _plan(values, tables, num_ranks, ranks_per_node, device)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise PlanMismatchError(
            f"the plan is not of the form that `farewell plan` writes ({error!r}); write it again"
        ) from error


def _plan(
    values: Mapping[str, Any],
    tables: Sequence[TableSpec],
    num_ranks: int,
    ranks_per_node: int,
    device: str,
) -> ShardingPlan:
    modules = values.get("modules", values)
    planned = {name: (path, entry) for path in modules for name, entry in modules[path].items()}
    by_name = {table.name: table for table in tables}
    if set(planned) != set(by_name) or sum(map(len, modules.values())) != len(by_name):
        raise PlanMismatchError(
            f"plan and model differ in tables: only in the plan: "
            f"{sorted(set(planned) - set(by_name)) or 'none'}; only in the model: "
            f"{sorted(set(by_name) - set(planned)) or 'none'}; named by two modules: "
            f"{sum(map(len, modules.values())) - len(planned)}"
        )
    result: dict[str, EmbeddingModuleShardingPlan] = {}
    for name, (path, entry) in planned.items():
        table = by_name[name]
        made_for = values.get("tables", {}).get(name, {})
        _check(table, path, entry, made_for, num_ranks, ranks_per_node, device)
        module = result.setdefault(path, EmbeddingModuleShardingPlan())
        module[name] = _table_from_json(table, entry, ranks_per_node, device)
    return ShardingPlan(dict(result))


def _check(
    table: TableSpec,
    path: str,
    entry: Mapping[str, Any],
    made_for: Mapping[str, Any],
    num_ranks: int,
    ranks_per_node: int,
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
    wrong = [rank for rank in entry["ranks"] if not _is_index(rank, num_ranks)]
    everywhere = kind in (ShardingType.DATA_PARALLEL.value, ShardingType.ROW_WISE.value)
    if wrong or (everywhere and sorted(entry["ranks"]) != list(range(num_ranks))):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's ranks {entry['ranks']} are not those of a run "
            f"with {num_ranks} ranks ({kind})"
        )
    if kind == ShardingType.DATA_PARALLEL.value:
        if entry["shards"]:
            raise PlanMismatchError(
                f"table {table.name!r}: the plan has it data_parallel, that is whole on every "
                f"rank, and yet cuts it into {len(entry['shards'])} shards"
            )
        return
    _check_shards(table, kind, entry["shards"], num_ranks, ranks_per_node)
    held_by = [shard["rank"] for shard in entry["shards"]]
    in_order = kind != ShardingType.ROW_WISE.value or held_by == list(range(num_ranks))
    if entry["ranks"] != held_by or not in_order:
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's ranks are {entry['ranks']}, its {kind} shards "
            f"are on {held_by}; expected the same, in order"
        )


def _check_shards(
    table: TableSpec, kind: str, shards: Sequence[Any], num_ranks: int, ranks_per_node: int
) -> None:
    """Check that shards are where TorchRec's lookups presume them.

    They cut a table into equal blocks of columns and each of these into as many blocks of rows as
    ranks share it: ids are sent to ranks by division, not by looking into the plan.
    """
    for shard in shards:
        numbers = [*shard["rows"], *shard["columns"]]
        if len(numbers) != 4 or not all(_is_index(n, 1 << 62) for n in numbers):
            raise PlanMismatchError(
                f"table {table.name!r}: the plan has a shard of rows {shard['rows']} and columns "
                f"{shard['columns']}, expected a first one and a number for both"
            )
        if not _is_index(shard["rank"], num_ranks):
            raise PlanMismatchError(
                f"table {table.name!r}: the plan has a shard on rank {shard['rank']!r} of a run "
                f"with {num_ranks} ranks"
            )
    cells = sum(shard["rows"][1] * shard["columns"][1] for shard in shards)
    rows = max((sum(shard["rows"]) for shard in shards), default=0)
    columns = max((sum(shard["columns"]) for shard in shards), default=0)
    if (rows, columns, cells) != (table.rows, table.dim, table.num_parameters):
        raise PlanMismatchError(
            f"table {table.name!r}: the plan's shards make {rows} x {columns} with {cells} "
            f"weights, the model's table is {table.rows} x {table.dim}"
        )
    if table.managed is not None:  # whose rows come in buckets
        return
    shared_by = {
        ShardingType.ROW_WISE.value: num_ranks,
        ShardingType.TABLE_ROW_WISE.value: ranks_per_node,
        ShardingType.GRID_SHARD.value: ranks_per_node,
    }.get(kind, 1)
    block = -(-table.rows // shared_by)
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for shard in shards:
        groups.setdefault((*shard["columns"],), []).append((*shard["rows"],))
    expected = [
        (min(block * part, table.rows), max(0, min(block, table.rows - block * part)))
        for part in range(shared_by)
    ]
    first = 0
    for (start, number), found in sorted(groups.items()):
        if start != first or found != expected:
            raise PlanMismatchError(
                f"table {table.name!r}: the plan has rows {found[:4]} of columns "
                f"{start} + {number}, but {kind} tables are cut into rows {expected[:4]} of "
                f"columns from {first} on"
            )
        first += number


def _is_index(value: Any, stop: int) -> bool:
    return type(value) is int and 0 <= value < stop


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
