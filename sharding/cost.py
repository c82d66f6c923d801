"""What a plan costs: bytes of each rank by what they hold, and the predicted step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torchrec.distributed.types import ShardingType

from sharding.dry_run import DryRunRequest, Target
from sharding.estimates import weights_tier
from sharding.fast_planner import FastPlan
from sharding.shards import Array

TIERS = ("hbm", "ddr", "ssd")
MEMORY_PARTS = ("weights", "state", "buffers", "dense", "reserve", "free")


@dataclass(frozen=True)
class Step:
    """Predicted milliseconds of the tables' part of a step, on the slowest rank of each part.

    Attributes:
        lookup_ms: forward.
        exchange_ms: all-to-all (or reduce) of vectors and gradients, and of ids.
        backward_ms: backward with the fused update.
        prefetch_ms: rows fetched into the cache.
        step_ms: all of it, on the rank where the sum is largest.
        imbalance: slowest rank over the mean.
        samples_per_s: impressions per second and rank.
    """

    lookup_ms: float
    exchange_ms: float
    backward_ms: float
    prefetch_ms: float
    step_ms: float
    imbalance: float
    samples_per_s: float


def predicted_step(plan: FastPlan, batch_size: int) -> Step:
    """The tables' part of a step."""
    parts = plan.parts_by_rank()
    forward, forward_exchange, backward, backward_exchange, prefetch, ids = parts.T
    total = parts.sum(axis=1)
    slowest = float(total.max())
    return Step(
        lookup_ms=float(forward.max()),
        exchange_ms=float((forward_exchange + backward_exchange + ids).max()),
        backward_ms=float(backward.max()),
        prefetch_ms=float(prefetch.max()),
        step_ms=slowest,
        imbalance=slowest / float(total.mean()) if slowest else 1.0,
        samples_per_s=1000 * batch_size / slowest if slowest else float("inf"),
    )


def memory_by_part(request: DryRunRequest, target: Target) -> Array:
    """Bytes on each rank by tier and part (R, 3, 6), parts as in `MEMORY_PARTS`.

    Buffers are inputs, outputs, gradients of data-parallel tables and the device cache of rows
    that live in host memory. The parts of a tier add up to the machine's memory.
    """
    plan = target.plan
    if plan is None:
        raise ValueError(f"{target.cluster.title}: no plan, so no memory by part")
    machine = target.cluster.machine
    found = np.zeros((target.cluster.num_ranks, len(TIERS), len(MEMORY_PARTS)), np.int64)
    for entry in plan.tables:
        tier = weights_tier(entry.way.kernel, machine.device)
        sizes = entry.way.grid.distinct_K2
        exact = np.zeros((len(sizes), len(TIERS), 2), np.int64)
        for kind, (rows, columns) in enumerate(sizes.tolist()):
            exact[kind, tier, 0] = entry.table.shard_bytes(rows, columns)
            exact[kind, tier, 1] = entry.table.shard_state_bytes(rows, columns)
        if entry.way.sharding_type == ShardingType.DATA_PARALLEL.value:
            exact[:, tier, 1] = entry.table.replicated_state_bytes
        kinds = entry.way.grid.kind_S
        np.add.at(found[:, :, :2], entry.ranks_S, exact[kinds])
        buffers = np.maximum(entry.way.memory_K3 - exact.sum(axis=2), 0)
        np.add.at(found[:, :, 2], entry.ranks_S, buffers[kinds])
    home = 0 if machine.device == "cuda" else 1
    found[:, home, 3] = request.dense.bytes_per_rank(target.cluster.num_ranks)
    totals = np.array([machine.hbm_bytes, machine.ddr_bytes, machine.ssd_bytes], np.int64)
    found[:, :2, 4] = totals[:2] - (totals[:2] * (1 - request.reserve)).astype(np.int64)
    found[:, :, 5] = totals - found.sum(axis=2)
    return found
