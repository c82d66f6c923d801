"""How fast tables are planned, and how good the plans are by TorchRec's own rating.

Run::

    python benchmarks/plan_speed.py --json plan_speed.json
    python benchmarks/plan_speed.py --skip-stock        # seconds

Each planning runs in a process of its own, so that its peak of resident memory is its own. Both
planners get the same tables, the same constraints and the same memory. TorchRec's planner takes
long on the large request, so it runs once; ours runs three times and the median counts.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from record import Record, write_results
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from sharding.fast_planner import plan_tables
from sharding.hardware import Cluster, a100, b200, h100
from sharding.sharders import sharders
from sharding.tables import OPTIMIZER_CLASSES, TableSpec, planner_constraints
from trainer.run_folder import package_versions, write_json

LARGEST_SECONDS = 5.0
LARGEST_BYTES = 4 * 2**30
TIMES_FASTER = 50.0
QUALITY = 1.02
BATCH_SIZE = 512
RESERVE = 0.15


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure planning.

    Args:
        skip_stock: Leave out TorchRec's planner.
        repeats: Runs of ours.
        json: Result file.
        write_note: Leave a dated note under benchmarks/results.
    """

    skip_stock: bool = False
    repeats: int = 3
    json: Path | None = None
    write_note: bool = False


@dataclass(frozen=True)
class Request:
    """Tables and the cluster they are planned on."""

    name: str
    tables: tuple[TableSpec, ...]
    cluster: Cluster

    @property
    def num_parameters(self) -> int:
        """Weights of all tables."""
        return sum(table.num_parameters for table in self.tables)

    def topology(self) -> Any:
        """The cluster with a reserve of device memory."""
        hbm = int(self.cluster.machine.hbm_bytes * (1 - RESERVE))
        return self.cluster.topology(hbm_bytes=hbm)


@dataclass(frozen=True)
class Outcome:
    """One planning: seconds, TorchRec's rating in ms, peak bytes of the process, memory kept."""

    seconds: float
    rating: float
    peak_bytes: int
    keeps_limits: bool


def equal_tables(count: int, num_parameters: float, dim: int = 128) -> tuple[TableSpec, ...]:
    """Tables whose rows differ by a few, so that no two are the same to the planner."""
    rows = int(num_parameters / count / dim)
    return tuple(
        TableSpec(name=f"t{i}", rows=rows + i, dim=dim, features=(f"f{i}",), role="item_id")
        for i in range(count)
    )


def mixed_tables(seed: int, count: int, low: float, high: float) -> tuple[TableSpec, ...]:
    """Rows from 10^low to 10^high; dims, ids an impression and optimizers mixed."""
    rng = np.random.default_rng(seed)
    return tuple(
        TableSpec(
            name=f"t{i}",
            rows=int(10 ** rng.uniform(low, high)),
            dim=int(rng.choice([16, 32, 64, 128, 256])),
            features=(f"f{i}",),
            role="side",
            pooling_factors=(float(rng.choice([1, 1, 5, 20, 50])),),
            optimizer=rng.choice(["rowwise_adagrad", "adagrad", "sgd"]),
        )
        for i in range(count)
    )


def scaling_requests() -> list[Request]:
    """64 tables whose rows grow with the number of GPUs: 7.52e12 parameters at 1,024."""
    return [
        Request(
            f"64 tables, {7.52 * gpus / 1024:.2f}e12 parameters, {gpus:,} H100",
            equal_tables(64, 7.52e12 * gpus / 1024),
            Cluster(machine=h100(), nodes=gpus // 8),
        )
        for gpus in (512, 1024, 2048, 4096)
    ]


def stock_requests() -> list[Request]:
    """What TorchRec's planner is asked too, the large one last."""
    return [
        Request(
            "5 mixed tables, 8 A100",
            mixed_tables(1, 5, 3, 8),
            Cluster(machine=a100(), nodes=1),
        ),
        Request(
            "12 mixed tables, 16 H100",
            mixed_tables(2, 12, 3, 8.5),
            Cluster(machine=h100(), nodes=2),
        ),
        Request(
            "20 mixed tables, 16 H100",
            mixed_tables(3, 20, 3, 9.2),
            Cluster(machine=h100(), nodes=2),
        ),
        Request(
            "26 mixed tables, 32 B200",
            mixed_tables(4, 26, 2, 9),
            Cluster(machine=b200(), nodes=4),
        ),
        Request(
            "32 tables, 3e12 parameters, 256 H100",
            equal_tables(32, 3e12),
            Cluster(machine=h100(), nodes=32),
        ),
    ]


def plan_ours(request: Request) -> Outcome:
    """Our planner, to the end: TorchRec's ShardingPlan."""
    start = time.perf_counter()
    plan = plan_tables(request.tables, request.topology(), batch_size=BATCH_SIZE)
    plan.to_sharding_plan()
    seconds = time.perf_counter() - start
    keeps = bool((plan.memory_by_rank() <= plan.capacity).all())
    return Outcome(seconds, plan.rating, _peak_bytes(), keeps)


def plan_stock(request: Request) -> Outcome:
    """TorchRec's EmbeddingShardingPlanner with its default proposers."""
    model = nn.Module()
    configs = [table.to_config() for table in request.tables]
    model.bags = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    by_name = {table.name: table for table in request.tables}
    for path, weight in model.named_parameters():
        optimizer = OPTIMIZER_CLASSES[by_name[path.split(".")[-2]].optimizer]
        apply_optimizer_in_backward(optimizer, [weight], {"lr": 0.1})
    planner = EmbeddingShardingPlanner(
        topology=request.topology(),
        batch_size=BATCH_SIZE,
        constraints=planner_constraints(request.tables, min_partition=32),
        storage_reservation=FixedPercentageStorageReservation(0.0),
    )
    start = time.perf_counter()
    planner.plan(model, sharders())
    seconds = time.perf_counter() - start
    perf = np.zeros(request.cluster.num_ranks)
    for option in planner._best_plan:
        for shard in option.shards:
            perf[shard.rank] += shard.perf.total
    return Outcome(seconds, float(perf.max()), _peak_bytes(), keeps_limits=True)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(function: Callable[[Request], Outcome], request: Request, sender: Connection) -> None:
    sender.send(function(request))


def apart(function: Callable[[Request], Outcome], request: Request) -> Outcome:
    """Call `function(request)` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, request, sender))
    process.start()
    sender.close()
    outcome: Outcome = receiver.recv()
    process.join()
    return outcome


def measure_scaling(repeats: int) -> tuple[list[Record], list[str]]:
    """Ours alone, at 512 to 4,096 GPUs."""
    records, lines = [], []
    seconds: dict[int, float] = {}
    for request in scaling_requests():
        outcomes = [apart(plan_ours, request) for _ in range(repeats)]
        median = statistics.median(outcome.seconds for outcome in outcomes)
        peak = max(outcome.peak_bytes for outcome in outcomes)
        gpus = request.cluster.num_ranks
        seconds[gpus] = median
        fits = all(outcome.keeps_limits for outcome in outcomes)
        line = f"| {request.name} | {median:.2f} s | {peak / 2**30:.2f} GiB | {fits} |"
        print(line, flush=True)
        lines.append(line)
        if gpus == 1024:
            spread = [outcome.seconds / LARGEST_SECONDS for outcome in outcomes]
            records.append(
                Record(
                    benchmark=f"plan {request.name}",
                    ours=median,
                    peer=LARGEST_SECONDS,
                    peer_name="target in seconds",
                    ratio=median / LARGEST_SECONDS,
                    spread=(min(spread), max(spread)),
                    target=f"at most {LARGEST_SECONDS:g} s and {LARGEST_BYTES / 2**30:g} GiB",
                    holds=median <= LARGEST_SECONDS and peak < LARGEST_BYTES and fits,
                    versions=package_versions(),
                    runs={
                        "seconds": [outcome.seconds for outcome in outcomes],
                        "peak_bytes": [float(outcome.peak_bytes) for outcome in outcomes],
                    },
                )
            )
    growth = seconds[4096] / seconds[512]
    records.append(
        Record(
            benchmark="plan seconds at 4,096 GPUs against 512 GPUs",
            ours=seconds[4096],
            peer=seconds[512],
            peer_name="ours at 512 GPUs",
            ratio=growth,
            spread=(growth, growth),
            target="at most 8 x (linear)",
            holds=growth <= 8,
            versions=package_versions(),
            runs={str(gpus): [value] for gpus, value in seconds.items()},
        )
    )
    return records, lines


def measure_against_stock(repeats: int) -> tuple[list[Record], list[str]]:
    """Both planners on the same requests."""
    records, lines = [], []
    for request in stock_requests():
        stock = apart(plan_stock, request)
        outcomes = [apart(plan_ours, request) for _ in range(repeats)]
        seconds = statistics.median(outcome.seconds for outcome in outcomes)
        quality = outcomes[0].rating / stock.rating
        faster = stock.seconds / seconds
        large = request.cluster.num_ranks >= 256
        fits = all(outcome.keeps_limits for outcome in outcomes)
        line = (
            f"| {request.name}, {request.num_parameters:.3g} parameters | {seconds:.2f} s | "
            f"{stock.seconds:.1f} s | {faster:.0f} x | {quality:.4f} | {fits} |"
        )
        print(line, flush=True)
        lines.append(line)
        records.append(
            Record(
                benchmark=f"plan {request.name}: rating {quality:.4f} x stock",
                ours=seconds,
                peer=stock.seconds,
                peer_name=f"torchrec {package_versions().get('torchrec')} planner, seconds",
                ratio=faster,
                spread=(
                    stock.seconds / max(outcome.seconds for outcome in outcomes),
                    stock.seconds / min(outcome.seconds for outcome in outcomes),
                ),
                target=f"rating at most {QUALITY:g} x stock"
                + (f", at least {TIMES_FASTER:g} x faster" if large else ""),
                holds=fits and quality <= QUALITY and (not large or faster >= TIMES_FASTER),
                versions=package_versions(),
                runs={
                    "seconds": [outcome.seconds for outcome in outcomes],
                    "peer_seconds": [stock.seconds],
                    "rating": [outcome.rating for outcome in outcomes],
                    "peer_rating": [stock.rating],
                },
            )
        )
    return records, lines


def main(settings: Settings) -> None:
    """Measure, print, write."""
    scaling = "| request | plan | peak memory | keeps limits |\n| --- | --- | --- | --- |"
    print(scaling)
    records, rows = measure_scaling(settings.repeats)
    body = "\n".join([scaling, *rows])
    if not settings.skip_stock:
        header = (
            "| request | ours | stock | faster | rating against stock | keeps limits |\n"
            "| --- | --- | --- | --- | --- | --- |"
        )
        print(header)
        stock_records, rows = measure_against_stock(settings.repeats)
        records += stock_records
        body += "\n\n" + "\n".join([header, *rows])
    if settings.json is not None:
        write_json(settings.json, [asdict(record) for record in records])
    if settings.write_note:
        write_results(
            "plan_speed",
            title="Planning speed and quality",
            command="python benchmarks/plan_speed.py --write-note",
            notes=(
                "Both planners get the same tables, constraints and memory limits (15 % of device "
                "memory kept free), and their plans are rated alike: predicted milliseconds of "
                "the slowest rank. TorchRec's time leaves out the building of its module, ours "
                "includes everything up to TorchRec's ShardingPlan. Ours is the median of "
                f"{settings.repeats} runs, TorchRec's a single one."
            ),
            body=body,
        )
    print(json.dumps({record.benchmark: record.holds for record in records}, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
