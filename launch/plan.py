r"""Plan an experiment's tables on clusters that need not be there.

    farewell plan trm_rankmixer.movielens1m --cluster h100 --nodes 16
    farewell plan mine.py:experiment --cluster h100 b200 --nodes 16 8 --batch-size 512
    farewell plan mine.py:experiment --cluster a100 h100 h200 --smallest
    farewell plan mine.py:experiment --cluster machine.json --folder runs/plan
    farewell plan --diff runs/a/plan_report.json runs/b/plan_report.json
    farewell plan --calibrate machine.json --ranks 2

A cluster is a name (a100, h100, h200, b200, cpu), a JSON file of a machine's figures, or
`file.py:function` that returns a Machine. The folder gets `plan_report.{json,md,html}`, figures,
and for each cluster a `plan_<machine>_<nodes>.json` that `farewell train --plan` executes. The
exit code is 1 when a cluster does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from launch.calibrate import calibrate
from launch.experiment_command import experiment_command
from launch.named import load_named
from launch.terminal import result_console
from sharding.dry_run import DryRunRequest, DryRunResult, dry_run
from sharding.figures import write_figures
from sharding.hardware import MACHINES, Cluster, Machine, machine_from_json, machine_to_json
from sharding.plan_diff import difference, read_plan_report
from sharding.report import (
    RANK_HEADER,
    TABLE_HEADER,
    build_plan_report,
    plan_files,
    rank_rows,
    table_rows,
    title_line,
    to_html,
    to_markdown,
    verdict_lines,
)
from sharding.smallest_cluster import smallest_cluster
from trainer.experiment import Experiment
from trainer.run_folder import write_json
from trainer.table_use import dense_reserve, measured_tables


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """What is planned, and for what.

    Args:
        cluster: machines, each a target of its own.
        nodes: nodes of each cluster; one number stands for all.
        batch_size: impressions per rank and step; by default the experiment's whole batch.
        reserve: share of memory kept for activations and the allocator.
        smallest: search the least number of nodes of each machine instead of planning `nodes`.
        folder: of the report; by default `runs/<experiment>/plan`.
        json: file to write the report to, beside the folder.
        experiment: whose tables are planned.
    """

    cluster: tuple[str, ...] = ("h100",)
    nodes: tuple[int, ...] = (1,)
    batch_size: int | None = None
    reserve: float = 0.15
    smallest: bool = False
    folder: Path | None = None
    json: Path | None = None
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class CalibrateCommand:
    """Measure this machine for some seconds, for `--cluster`.

    Args:
        calibrate: file that the machine's figures are written to.
        ranks: processes that training would use here.
    """

    calibrate: Path
    ranks: int = 1


def main(args: Sequence[str]) -> None:
    """Run `farewell plan` with the words that follow the verb."""
    if args and args[0] == "--diff":
        _diff(args[1:])
        return
    if args and args[0] == "--calibrate":
        _calibrate(tyro.cli(CalibrateCommand, prog="farewell plan", args=args))
        return
    command = experiment_command(
        lambda experiment: PlanCommand(experiment=experiment),
        args,
        verb="plan",
        description=__doc__,
    )
    console = result_console()
    experiment = command.experiment
    batch_size = command.batch_size or experiment.train.batch_size
    tables, note = measured_tables(experiment, batch_size)
    console.print(f"[dim]{note}[/dim]", soft_wrap=True)
    request = DryRunRequest(
        name=experiment.name,
        tables=tables,
        clusters=_clusters(command.cluster, command.nodes),
        batch_size=batch_size,
        dense=dense_reserve(experiment),
        min_partition=experiment.sharding.min_partition,
        reserve=command.reserve,
    )
    folder = command.folder or Path("runs") / experiment.name / "plan"
    if command.smallest:
        report = _smallest(request, folder, console)
    else:
        result = dry_run(request)
        report = _write(result, folder, console)
    if command.json is not None:
        write_json(command.json, report)
    if not report["fits"]:
        raise SystemExit(1)


def load_machine(name: str) -> Machine:
    """A machine by name, from a JSON file, or from `file.py:function`.

    Raises:
        ValueError: naming the machines there are.
    """
    if name in MACHINES:
        return MACHINES[name]
    if name.endswith(".json"):
        return machine_from_json(Path(name))
    if ":" in name:
        return load_named(name, Machine)
    raise ValueError(
        f"--cluster {name}: expected {', '.join(MACHINES)}, a .json file, or file.py:function"
    )


def _clusters(names: Sequence[str], nodes: Sequence[int]) -> tuple[Cluster, ...]:
    if len(nodes) not in (1, len(names)):
        raise ValueError(
            f"--nodes has {len(nodes)} numbers for {len(names)} clusters; give one, or one each"
        )
    counts = list(nodes) * (len(names) if len(nodes) == 1 else 1)
    return tuple(
        Cluster(machine=load_machine(name), nodes=count)
        for name, count in zip(names, counts, strict=True)
    )


def _write(result: DryRunResult, folder: Path, console: Console) -> dict[str, Any]:
    """Print the report and leave its files in `folder`."""
    report = build_plan_report(result)
    folder.mkdir(parents=True, exist_ok=True)
    files = plan_files(result)
    figures: list[str] = []
    console.print(title_line(report), soft_wrap=True)
    for target in report["targets"]:
        console.print(f"\n[bold]{target['cluster']}[/bold]")
        for line in verdict_lines(target):
            console.print(line, soft_wrap=True, markup=False)
        if target["fits"]:
            console.print(_table(TABLE_HEADER, table_rows(target)))
            console.print(_table(RANK_HEADER, rank_rows(target)))
            stem = f"plan_{target['machine']['name']}_{target['nodes']}"
            write_json(folder / f"{stem}.json", files[target["cluster"]])
            figures += write_figures(target, folder, stem)
    write_json(folder / "plan_report.json", report)
    _write_text(folder / "plan_report.md", to_markdown(report, figures))
    _write_text(folder / "plan_report.html", to_html(report, figures))
    console.print(f"\nreport: {folder / 'plan_report.html'}", soft_wrap=True)
    return report


def _smallest(request: DryRunRequest, folder: Path, console: Console) -> dict[str, Any]:
    rows: list[list[str]] = []
    found: list[dict[str, Any]] = []
    for machine in dict.fromkeys(cluster.machine for cluster in request.clusters):
        try:
            smallest = smallest_cluster(request, machine)
        except ValueError as error:
            console.print(f"{machine.name}: {error}", soft_wrap=True, markup=False)
            found.append({"machine": machine.name, "fits": False, "reason": str(error)})
            continue
        cluster = smallest.target.cluster
        steps = {nodes: step.step_ms for nodes, step in smallest.steps.items()}
        if smallest.below is not None:
            below = smallest.below
            console.print(
                f"{below.cluster.nodes} x {machine.name}: {below.reason}",
                soft_wrap=True,
                markup=False,
            )
        cells = [f"{ms:,.3f} ({nodes})" for nodes, ms in steps.items()]
        rows.append([machine.name, str(cluster.nodes), f"{cluster.num_ranks:,}", *cells])
        found.append(
            {
                "machine": machine.name,
                "fits": True,
                "nodes": cluster.nodes,
                "num_ranks": cluster.num_ranks,
                "one_node_less": None if smallest.below is None else smallest.below.reason,
                "step_ms_by_nodes": steps,
            }
        )
    header = ("machine", "nodes", "ranks", *(f"step ms at {n} x" for n in (1, 2, 4, 8)))
    console.print(_table(header, rows))
    report = {
        "name": request.name,
        "fingerprint": request.fingerprint,
        "fits": all(entry["fits"] for entry in found),
        "smallest": found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "smallest.json", report)
    console.print(f"report: {folder / 'smallest.json'}", soft_wrap=True)
    return report


def _calibrate(command: CalibrateCommand) -> None:
    machine = calibrate(command.ranks, name=command.calibrate.stem)
    write_json(command.calibrate, machine_to_json(machine))
    print(
        f"{command.calibrate}: rows at {machine.ddr_bandwidth / 1e9:.2f} GB/s, exchange at "
        f"{machine.intra_node_bandwidth / 1e9:.2f} GB/s a rank, {machine.ranks_per_node} ranks"
    )


def _diff(paths: Sequence[str]) -> None:
    if len(paths) != 2:
        raise ValueError("farewell plan --diff takes two plan_report.json files")
    before, after = (read_plan_report(Path(path)) for path in paths)
    for line in difference(before, after) or ["no difference"]:
        print(line)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*header)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
