"""Does the predicted step rank plans as the machine does?

Run::

    python benchmarks/plan_vs_measured.py --json plan_vs_measured.json

The machine is calibrated for some seconds (as `farewell plan --calibrate` does). For each of three
table sets, plans are drawn at random (ways of tables, ranks of whole tables) and ten are kept whose
predictions lie within a factor of four, evenly spread. Two ranks execute them in turn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro
from plan_worker import read_times, time_plans
from record import Record, write_results
from scipy.stats import spearmanr

from launch.calibrate import calibrate
from launch.ranks import run_on_ranks
from sharding.estimates import Estimator
from sharding.fast_planner import FastPlan, TablePlan
from sharding.hardware import Cluster, Machine
from sharding.plan_io import plan_to_json
from sharding.tables import TableSpec
from trainer.run_folder import package_versions, write_json

LEAST_CORRELATION = 0.8
SPREAD = 4.0
BATCH_SIZE = 4096
MIN_PARTITION = 64
"""Of column shards; for narrower ones TorchRec adds a penalty of GPU kernels that no CPU has."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Compare predicted and measured steps.

    Args:
        plans: Plans of each table set.
        rounds: Turns of all plans; the fastest counts, since other programs only slow a turn.
        ranks: Processes.
        json: Result file.
        write_note: Leave a dated note under benchmarks/results.
    """

    plans: int = 10
    rounds: int = 7
    ranks: int = 2
    json: Path | None = None
    write_note: bool = False


def table_sets() -> dict[str, tuple[TableSpec, ...]]:
    """Equal tables; mixed widths and numbers of ids; tokens beside one large table."""
    return {
        "equal": tuple(_table(f"t{i}", 200_000, 128, 8) for i in range(8)),
        "mixed": tuple(
            _table(f"t{i}", rows, dim, ids)
            for i, (rows, dim, ids) in enumerate(
                [
                    (300_000, 128, 20),
                    (50_000, 256, 5),
                    (200_000, 128, 10),
                    (1_000, 128, 1),
                    (100_000, 256, 8),
                    (20_000, 128, 2),
                ]
            )
        ),
        "tokens": (
            _table("gen_token", 20_480, 128, 25),
            _table("mem_token", 400_000, 128, 10),
            _table("user_id", 500_000, 256, 1),
            _table("query_id", 200_000, 256, 1),
            _table("query_term", 100_000, 128, 8),
            _table("city", 400, 128, 1),
        ),
    }


def _table(name: str, rows: int, dim: int, ids: float) -> TableSpec:
    return TableSpec(
        name=name, rows=rows, dim=dim, features=(name,), role="side", pooling_factors=(ids,)
    )


def random_plans(
    tables: tuple[TableSpec, ...], machine: Machine, count: int, seed: int
) -> list[FastPlan]:
    """Plans within a factor of `SPREAD` by prediction, evenly spread in its logarithm."""
    rng = np.random.default_rng(seed)
    topology = Cluster(machine=machine, nodes=1).topology()
    estimator = Estimator(
        tables, topology=topology, batch_size=BATCH_SIZE, min_partition=MIN_PARTITION
    )
    one_node = ("data_parallel", "table_wise", "column_wise", "row_wise")
    pool = []
    for _ in range(600):
        entries = []
        # Each plan has its own taste in ways, and its own lean towards rank 1.
        taste = dict(zip(one_node, rng.dirichlet(np.full(len(one_node), 0.6)), strict=True))
        lean = rng.beta(0.5, 0.5)
        for table in tables:
            ways = [w for w in estimator.candidates(table) if w.sharding_type in one_node]
            odds = np.array([taste[way.sharding_type] + 1e-9 for way in ways])
            way = ways[rng.choice(len(ways), p=odds / odds.sum())]
            ranks = np.arange(way.grid.num_shards) % topology.world_size
            if way.partition_by == "device":
                ranks = (rng.random(way.grid.num_shards) < lean).astype(np.int64)
            entries.append(TablePlan(table, way, ranks))
        pool.append(FastPlan(tuple(entries), topology, estimator.capacity, 0))
    predicted = np.array([predicted_ms(plan) for plan in pool])
    low = np.quantile(predicted, 0.02)
    wanted = low * SPREAD ** np.linspace(0, 0.99, count)
    chosen: list[int] = []
    for value in wanted:
        order = np.argsort(np.abs(np.log(predicted / value)))
        chosen.append(next(int(i) for i in order if i not in chosen))
    kept = [pool[i] for i in chosen if low * 0.999 <= predicted[i] <= low * SPREAD]
    return sorted(kept, key=predicted_ms)


def predicted_ms(plan: FastPlan) -> float:
    """All parts of the slowest rank."""
    return float(plan.parts_by_rank().sum(axis=1).max())


def compare_set(
    name: str, tables: tuple[TableSpec, ...], machine: Machine, settings: Settings
) -> dict[str, Any]:
    """Predicted and measured milliseconds of one table set, and their rank correlation."""
    plans = random_plans(tables, machine, settings.plans, seed=len(name))
    documents = [plan_to_json(plan.to_sharding_plan()) for plan in plans]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "times.json"
        run_on_ranks(
            time_plans,
            settings.ranks,
            tables,
            documents,
            BATCH_SIZE,
            settings.rounds,
            path,
            log_folder=Path(folder) / "log",
        )
        times = read_times(path)
    predicted = [predicted_ms(plan) for plan in plans]
    measured = [min(values) for values in times]
    return {
        "set": name,
        "predicted_ms": predicted,
        "measured_ms": measured,
        "rounds_ms": times,
        "ways": [
            {entry.table.name: entry.way.sharding_type for entry in plan.tables} for plan in plans
        ],
        "spearman": float(spearmanr(predicted, measured).statistic),
    }


def main(settings: Settings) -> None:
    """Calibrate, measure, print, write."""
    machine = calibrate(settings.ranks)
    print(
        f"rows {machine.ddr_bandwidth / 1e9:.2f} GB/s, exchange "
        f"{machine.intra_node_bandwidth / 1e9:.2f} GB/s"
    )
    records, lines = [], []
    for name, tables in table_sets().items():
        found = compare_set(name, tables, machine, settings)
        predicted, measured = found["predicted_ms"], found["measured_ms"]
        spread = max(predicted) / min(predicted)
        for p, m, ways in zip(predicted, measured, found["ways"], strict=True):
            print(f"  {p:8.2f} predicted  {m:8.2f} measured  {'/'.join(ways.values())}")
        print(f"{name}: Spearman {found['spearman']:.3f} over {len(predicted)} plans", flush=True)
        ratios = [m / p for p, m in zip(predicted, measured, strict=True)]
        lines.append(
            f"| {name} | {len(predicted)} | {spread:.2f} | {found['spearman']:.3f} | "
            f"{np.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f}) |"
        )
        records.append(
            Record(
                benchmark=f"predicted against measured step, table set {name}",
                ours=found["spearman"],
                peer=1.0,
                peer_name="the same order",
                ratio=found["spearman"],
                spread=(min(ratios), max(ratios)),
                target=f"Spearman at least {LEAST_CORRELATION:g} over 8 or more plans within 4 x",
                holds=found["spearman"] >= LEAST_CORRELATION
                and len(predicted) >= 8
                and spread <= SPREAD,
                versions=package_versions(),
                runs={"predicted_ms": predicted, "measured_ms": measured},
            )
        )
    if settings.json is not None:
        write_json(settings.json, [asdict(record) for record in records])
    if settings.write_note:
        header = (
            "| tables | plans | largest / smallest prediction | Spearman | measured / predicted |"
        )
        body = "\n".join([header, "| --- | --- | --- | --- | --- |", *lines])
        write_results(
            "plan_vs_measured",
            title="Predicted against measured steps",
            command="python benchmarks/plan_vs_measured.py --write-note",
            notes=(
                f"{settings.ranks} gloo ranks, {BATCH_SIZE} impressions a rank, uniform ids. "
                "Predicted is the slowest rank's sum of all parts on the calibrated machine; "
                f"measured is the fastest of {settings.rounds} turns of three steps, plans taking "
                "turns. The last column is median (smallest - largest) over plans."
            ),
            body=body,
        )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
