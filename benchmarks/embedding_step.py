"""Throughput of tables: a large ID table against token tables, and how far from copying memory.

Run::

    python benchmarks/embedding_step.py --json embedding_step.json
    python benchmarks/embedding_step.py --id-gib 1          # a first look

Two ranks look up, exchange, go backward and update; the planner decides how tables are sharded. An
impression reads a candidate and its history: one row an item for IDs; for tokens one row of each
of five levels (5 x 4,096 rows) and two mem-tokens (2e6 rows), at equal embedding dim; or one token,
so that as many rows are read as by IDs (`one_gen_token`). Ids are drawn uniformly, which is what a
large catalogue with little repetition does to caches. Then one process against nn.EmbeddingBag
with sparse gradients and Adagrad, on a table that both can hold.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from plan_worker import random_ids, shard, step
from record import Record, compare_in_turn, write_results
from torch import nn
from torch.profiler import ProfilerActivity, profile

from launch.calibrate import calibrate
from launch.ranks import run_on_ranks
from sharding.dry_run import needed_bytes
from sharding.fast_planner import plan_tables
from sharding.hardware import Cluster
from sharding.plan_io import plan_to_json
from sharding.tables import TableSpec
from trainer.distributed import start_ranks, stop_ranks
from trainer.run_folder import package_versions, write_json

TIMES_FASTER = 2.0
PARTS = {
    "rows read (forward)": ("codegen_forward",),
    "rows updated (backward)": ("backward_codegen",),
    "ids sorted by rank": ("bucketize", "permute_2d", "bounds_check", "splits_dist"),
    "exchange, waiting included": (
        "wait",
        "alltoall",
        "all2all",
        "reduce_scatter",
        "reducescatter",
        "allgather",
        "output_dist",
    ),
}
"""Parts of a step, with words in the names that torch's profiler gives to what is in them."""
OTHER = "everything else"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Measure tables.

    Args:
        id_gib: Weights and state of the ID table, over all ranks.
        dim: Floats a row, of every table.
        items: Items an impression reads.
        batch_size: Impressions a rank and step.
        ranks: Processes.
        rounds: Turns; medians count.
        json: Result file.
        write_note: Leave a dated note under benchmarks/results.
    """

    id_gib: float = 12.0
    dim: int = 64
    items: int = 20
    batch_size: int = 2048
    ranks: int = 2
    rounds: int = 5
    json: Path | None = None
    write_note: bool = False


def systems(settings: Settings) -> dict[str, tuple[TableSpec, ...]]:
    """Tables of each system."""
    row_bytes = 4 * settings.dim + 4
    rows = int(settings.id_gib * 2**30 / row_bytes)
    items = float(settings.items)

    def table(name: str, rows: int, ids: float) -> TableSpec:
        return TableSpec(
            name=name,
            rows=rows,
            dim=settings.dim,
            features=(name,),
            role="side",
            pooling_factors=(ids,),
        )

    return {
        "item_id": (table("item_id", rows, items),),
        "gen_and_mem_token": (
            table("gen_token", 5 * 4096, 5 * items),
            table("mem_token", 2_000_000, 2 * items),
        ),
        "one_gen_token": (table("gen_token", 5 * 4096, items),),
    }


def time_tables(
    tables: tuple[TableSpec, ...],
    plan: dict[str, Any],
    batch_size: int,
    rounds: int,
    path: Path,
) -> None:
    """Leave seconds of a step by round, where they go, and each rank's peak of resident memory."""
    ranks = start_ranks()
    model = shard(tables, plan)
    batches = [random_ids(tables, batch_size, seed=7 * ranks.rank + i) for i in range(3)]
    seconds = []
    for turn in range(rounds + 1):
        ranks.barrier()
        start = time.perf_counter()
        for ids in batches:
            step(model, ids)
        ranks.barrier()
        if turn:
            seconds.append((time.perf_counter() - start) / len(batches))
    spent = spent_by_part(lambda: step(model, batches[0]))
    peak = torch.tensor(float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    ranks.all_reduce(peak)
    if ranks.is_first:
        write_json(path, {"seconds": seconds, "spent": spent, "peak_bytes": float(peak)})
    ranks.barrier()
    stop_ranks()


def spent_by_part(run: Callable[[], object]) -> dict[str, float]:
    """Share of this rank's processor time by part of the step, under torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    seconds = dict.fromkeys((*PARTS, OTHER), 0.0)
    for event in profiler.key_averages():
        part = next(
            (part for part, words in PARTS.items() if any(w in event.key.lower() for w in words)),
            OTHER,
        )
        seconds[part] += event.self_cpu_time_total
    return {part: value / sum(seconds.values()) for part, value in seconds.items()}


def run_system(tables: tuple[TableSpec, ...], settings: Settings) -> dict[str, Any]:
    """Plan, execute, measure one system."""
    machine = calibrate(settings.ranks)
    plan = plan_tables(
        tables, Cluster(machine=machine, nodes=1).topology(), batch_size=settings.batch_size
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        run_on_ranks(
            time_tables,
            settings.ranks,
            tables,
            plan_to_json(plan.to_sharding_plan()),
            settings.batch_size,
            settings.rounds,
            path,
            log_folder=Path(folder) / "log",
        )
        found: dict[str, Any] = json.loads(path.read_text())
    impressions = settings.ranks * settings.batch_size
    found["samples_per_s"] = [impressions / s for s in found["seconds"]]
    found["ways"] = {entry.table.name: entry.way.sharding_type for entry in plan.tables}
    found["table_bytes"] = needed_bytes(tables)
    # Forward reads each row; backward reads and writes it; vectors go out and gradients come back.
    rows = sum(sum(table.pooling_factors or ()) for table in tables)
    row_bytes = 4 * settings.dim
    found["rows"] = rows
    found["moved_bytes"] = impressions * row_bytes * (3 * rows + 4 * len(tables))
    return found


def copy_bandwidth() -> float:
    """Bytes read and written per second by one thread's large copy."""
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / min(_seconds(lambda: target.copy_(source)) for _ in range(5))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def against_embedding_bag(settings: Settings) -> Record:
    """One process, one table of 2e6 rows: fused row-wise Adagrad against nn.EmbeddingBag."""
    rows, ids = 2_000_000, settings.items
    table = TableSpec(
        name="t",
        rows=rows,
        dim=settings.dim,
        features=("t",),
        role="side",
        pooling_factors=(float(ids),),
        sharding_types=("table_wise",),
    )
    whole = {"rows": [0, rows], "columns": [0, settings.dim], "rank": 0}
    entry = {
        "sharding_type": "table_wise",
        "compute_kernel": "fused",
        "ranks": [0],
        "shards": [whole],
    }
    ours = shard([table], {"sparse.pooled": {"t": entry}})
    batch = random_ids([table], settings.batch_size, seed=0)
    bag = nn.EmbeddingBag(rows, settings.dim, mode="sum", sparse=True)
    optimizer = torch.optim.Adagrad(bag.parameters(), lr=0.05)
    values = batch.values().reshape(-1, ids)

    def peer_step() -> None:
        optimizer.zero_grad()
        bag(values).sum().backward()
        optimizer.step()

    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(settings.rounds + 1):
        for side, run in (("ours", lambda: step(ours, batch)), ("peer", peer_step)):
            seconds = _seconds(run)
            if turn:
                rates[side].append(settings.batch_size / seconds)
    return compare_in_turn(
        "samples/s of one table, one process, forward + backward + update",
        ours=rates["ours"],
        peer=rates["peer"],
        peer_name=f"torch {torch.__version__} nn.EmbeddingBag, sparse gradient, Adagrad",
        at_least=None,
    )


def main(settings: Settings) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    free = psutil.virtual_memory().available / 2**30
    if free < settings.id_gib + 3:
        raise SystemExit(f"{free:.1f} GiB are free, --id-gib {settings.id_gib} needs 3 more")
    found = {name: run_system(tables, settings) for name, tables in systems(settings).items()}
    bandwidth = copy_bandwidth() * settings.ranks
    header = (
        "| tables | bytes with state | ways | samples/s | moved a step | moved / s | of copying | "
        "peak memory |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    lines = [header]
    for name, values in found.items():
        seconds = statistics.median(values["seconds"])
        rate = values["moved_bytes"] / seconds
        lines.append(
            f"| {name} | {values['table_bytes'] / 2**30:.2f} GiB | "
            f"{', '.join(values['ways'].values())} | "
            f"{statistics.median(values['samples_per_s']):,.0f} | "
            f"{values['moved_bytes'] / 1e6:,.0f} MB | {rate / 1e9:.2f} GB/s | "
            f"{rate / bandwidth:.1%} | {values['peak_bytes'] / 2**30:.1f} GiB |"
        )
    lines += ["", "| where a step goes, ms | " + " | ".join(found) + " |"]
    lines.append("| --- |" + " --- |" * len(found))
    for part in (*PARTS, OTHER):
        spent = [
            1000 * values["spent"][part] * statistics.median(values["seconds"])
            for values in found.values()
        ]
        lines.append(f"| {part} | " + " | ".join(f"{ms:.1f}" for ms in spent) + " |")
    lines.append(
        "| rows an impression | "
        + " | ".join(f"{values['rows']:g}" for values in found.values())
        + " |"
    )
    print("\n".join(lines))
    ids = found["item_id"]["samples_per_s"]
    records = [
        compare_in_turn(
            f"samples/s of {name} tables against the ID table, {settings.ranks} ranks",
            ours=found[name]["samples_per_s"],
            peer=ids,
            peer_name=f"ID table of {found['item_id']['table_bytes'] / 2**30:.1f} GiB",
            at_least=TIMES_FASTER,
        )
        for name in ("gen_and_mem_token", "one_gen_token")
    ]
    records.append(against_embedding_bag(settings))
    stop_ranks()
    for record in records:
        print(f"{record.benchmark}: {record.ratio:.2f} x (target: {record.target or 'none'})")
    if settings.json is not None:
        write_json(
            settings.json,
            [asdict(record) for record in records] + [{"systems": found, "copy": bandwidth}],
        )
    if settings.write_note:
        summary = [f"* {record.benchmark}: {record.ratio:.2f} x" for record in records]
        write_results(
            "embedding_step",
            title="Throughput of tables",
            command=f"python benchmarks/embedding_step.py --id-gib {settings.id_gib:g} "
            "--write-note",
            notes=(
                f"Dim {settings.dim}, {settings.items} items an impression, "
                f"{settings.batch_size} impressions a rank, uniform ids, fp32, row-wise Adagrad. "
                "Moved counts rows read (forward), read and written (backward), and vectors and "
                "gradients exchanged; copying is the sum over ranks of one thread's large copy, "
                "reads and writes counted. nn.EmbeddingBag keeps one accumulator a value, ours "
                f"one a row. numpy {np.__version__}, versions above."
            ),
            body="\n".join([*lines, "", *summary]),
        )
    print(json.dumps(package_versions()))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
