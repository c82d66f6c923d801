"""A sharding plan as JSON."""

from __future__ import annotations

from typing import Any

from torchrec.distributed.types import ShardingPlan


def plan_to_json(plan: ShardingPlan) -> dict[str, Any]:
    """Module path -> table -> sharding type, kernel, ranks and shards.

    A shard is `{"rows": [first, number], "columns": [first, number], "rank": r}`.
    """
    return {
        path: {table: _table_to_json(parameter) for table, parameter in module.items()}
        for path, module in plan.plan.items()
    }


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
