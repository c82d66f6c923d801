"""Plan tables on clusters that are not there: what fits, how it is sharded, what a step costs.

A request and its result are values; equal requests have equal fingerprints. A cluster that does
not fit is a result too: why, in numbers, and the nearest changes that were planned and do fit.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from sharding.fast_planner import FastPlan, NoPlanError, plan_tables
from sharding.hardware import Cluster
from sharding.tables import TableDType, TableKernel, TableSpec

DENSE_BYTES_PER_PARAMETER = 16
"""fp32 weight and gradient, and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class DenseReserve:
    """What the network takes on a rank.

    Args:
        num_parameters: of the network.
        sharded: over all ranks by FSDP; otherwise each rank holds all.
        largest_unit: parameters of the largest FSDP unit, which a rank gathers whole.
    """

    num_parameters: int = 0
    sharded: bool = False
    largest_unit: int = 0

    def bytes_per_rank(self, num_ranks: int) -> int:
        """Weights, gradients, optimizer state, and the gathered unit (weight and gradient)."""
        if not self.sharded:
            return DENSE_BYTES_PER_PARAMETER * self.num_parameters
        part = -(-self.num_parameters // num_ranks)
        return DENSE_BYTES_PER_PARAMETER * part + 8 * self.largest_unit


@dataclass(frozen=True, kw_only=True)
class DryRunRequest:
    """What is planned.

    Args:
        name: of the experiment.
        tables: every table.
        clusters: targets, each planned on its own.
        batch_size: impressions per rank and step.
        dense: the network's share of a rank.
        min_partition: fewest columns of a column-wise shard.
        reserve: share of device and host memory kept for activations and the allocator.
    """

    name: str
    tables: tuple[TableSpec, ...]
    clusters: tuple[Cluster, ...]
    batch_size: int
    dense: DenseReserve = DenseReserve()
    min_partition: int = 32
    reserve: float = 0.15

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: naming the field.
        """
        if not self.tables or not self.clusters:
            raise ValueError("a dry run needs at least one table and one cluster")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1 per rank")
        if not 0 <= self.reserve < 1:
            raise ValueError(f"reserve is {self.reserve}, expected a share from 0 to below 1")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all values."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Target:
    """One cluster's result.

    Attributes:
        cluster: that was planned.
        plan: None where nothing fits.
        reason: why nothing fits, in numbers; empty where it does.
        changes: changes that were planned and fit, nearest first.
        seconds: planning time.
    """

    cluster: Cluster
    plan: FastPlan | None
    reason: str = ""
    changes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def fits(self) -> bool:
        """Whether there is a plan."""
        return self.plan is not None


@dataclass(frozen=True, eq=False)
class DryRunResult:
    """A request and the result of each of its clusters."""

    request: DryRunRequest
    targets: tuple[Target, ...]

    @property
    def fits(self) -> bool:
        """Whether every cluster has a plan."""
        return all(target.fits for target in self.targets)


def dry_run(request: DryRunRequest) -> DryRunResult:
    """Plan every cluster of a request; one that fails does not stop the others."""
    return DryRunResult(
        request, tuple(plan_target(request, cluster) for cluster in request.clusters)
    )


def plan_target(request: DryRunRequest, cluster: Cluster, *, explain: bool = True) -> Target:
    """Plan one cluster.

    Args:
        request: what is planned; its own clusters are not looked at.
        cluster: target.
        explain: whether changes that would fit are searched where nothing fits.
    """
    start = time.perf_counter()
    try:
        plan = _plan(request, cluster)
    except NoPlanError as error:
        reason = f"{error}; {_shortage(request, cluster)}"
    except ValueError as error:
        return Target(cluster, None, str(error), seconds=time.perf_counter() - start)
    else:
        return Target(cluster, plan, seconds=time.perf_counter() - start)
    changes = _changes(request, cluster) if explain else ()
    return Target(cluster, None, reason, changes, time.perf_counter() - start)


def _plan(request: DryRunRequest, cluster: Cluster) -> FastPlan:
    hbm, ddr = table_capacity(request, cluster)
    return plan_tables(
        request.tables,
        cluster.topology(hbm_bytes=hbm, ddr_bytes=ddr),
        batch_size=request.batch_size,
        min_partition=request.min_partition,
    )


def table_capacity(request: DryRunRequest, cluster: Cluster) -> tuple[int, int]:
    """Bytes of device and host memory that tables may take on a rank."""
    machine = cluster.machine
    dense = request.dense.bytes_per_rank(cluster.num_ranks)
    hbm = int(machine.hbm_bytes * (1 - request.reserve))
    ddr = int(machine.ddr_bytes * (1 - request.reserve))
    if machine.device == "cuda":
        return max(0, hbm - dense), ddr
    return 0, max(0, ddr - dense)


def needed_bytes(tables: tuple[TableSpec, ...]) -> int:
    """Weights and optimizer state of all tables, unsharded."""
    return sum(table.num_bytes + table.num_state_bytes for table in tables)


def reachable_bytes(request: DryRunRequest, cluster: Cluster) -> int:
    """Memory of the cluster that some table may use."""
    hbm, ddr = table_capacity(request, cluster)
    machine = cluster.machine
    kernels: set[str] = set()
    for table in request.tables:
        kernels |= set(table.kernels or ("fused", "fused_uvm"))
    total = 0
    if machine.device == "cpu" or "fused" in kernels:
        total += ddr if machine.device == "cpu" else hbm
    if machine.device == "cuda" and kernels & {"fused_uvm", "fused_uvm_caching"}:
        total += ddr
    if machine.device == "cuda" and "key_value" in kernels:
        total += machine.ssd_bytes
    return total * cluster.num_ranks


def _shortage(request: DryRunRequest, cluster: Cluster) -> str:
    needed, there = needed_bytes(request.tables), reachable_bytes(request, cluster)
    largest = max(request.tables, key=lambda t: t.num_bytes + t.num_state_bytes)
    size = largest.num_bytes + largest.num_state_bytes
    verdict = f"{needed - there:,} bytes short" if needed > there else "room in sum, not in pieces"
    return (
        f"weights and optimizer state take {needed / 1e12:.3f} TB, {cluster.title} offers tables "
        f"{there / 1e12:.3f} TB ({verdict}); the largest table is {largest.name!r} with "
        f"{size / 1e12:.3f} TB"
    )


def _changes(request: DryRunRequest, cluster: Cluster) -> tuple[str, ...]:
    """Changes to the request that were planned and fit."""
    found = []
    dtypes: tuple[TableDType, ...] = (
        ("bf16", "int8") if cluster.machine.device == "cuda" else ("fp16",)
    )
    for dtype in dtypes:
        tables = tuple(
            replace(table, dtype=dtype) if table.dtype in ("fp32", "bf16", "fp16") else table
            for table in request.tables
        )
        if _fits(replace(request, tables=tables), cluster):
            found.append(f"{dtype} rows in every table")
            break
    if cluster.machine.device == "cuda":
        found.extend(_kernel_changes(request, cluster))
    nodes = _more_nodes(request, cluster)
    if nodes is not None:
        found.append(f"{nodes - cluster.nodes} more nodes: {replace(cluster, nodes=nodes).title}")
    return tuple(found)


def _kernel_changes(request: DryRunRequest, cluster: Cluster) -> list[str]:
    """The fewest cold tables that must leave device memory: to host memory, else to the SSD."""
    coldest = sorted(
        range(len(request.tables)),
        key=lambda i: (
            sum(request.tables[i].pooling_factors or (1.0,)) / request.tables[i].num_parameters
        ),
    )
    places: tuple[tuple[TableKernel, str], ...] = (
        ("fused_uvm_caching", "host memory"),
        ("key_value", "the SSD"),
    )
    for kernel, where in places:
        low, high = 0, len(coldest)
        if not _fits(_moved(request, coldest, kernel), cluster):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            if _fits(_moved(request, coldest[:middle], kernel), cluster):
                high = middle
            else:
                low = middle
        names = ", ".join(request.tables[i].name for i in coldest[:high][:6])
        more = " ..." if high > 6 else ""
        return [f"kernels=('{kernel}',) ({where}) for the {high} coldest tables: {names}{more}"]
    return []


def _moved(request: DryRunRequest, indices: list[int], kernel: TableKernel) -> DryRunRequest:
    tables = list(request.tables)
    for index in indices:
        tables[index] = replace(tables[index], kernels=(kernel,), sharding_types=None)
    return replace(request, tables=tuple(tables))


def _more_nodes(request: DryRunRequest, cluster: Cluster) -> int | None:
    """The least number of nodes that fits, up to 64 times as many."""
    low, high = cluster.nodes, cluster.nodes
    while not _fits(request, replace(cluster, nodes=high)):
        if high >= 64 * cluster.nodes:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(request, replace(cluster, nodes=middle)):
            high = middle
        else:
            low = middle
    return high


def _fits(request: DryRunRequest, cluster: Cluster) -> bool:
    return plan_target(request, cluster, explain=False).fits
