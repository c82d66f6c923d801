r"""A trained run -> a folder for serving: quantised tables, network, tokens, schema.

    farewell export runs/trm_rankmixer/TIME --out serving/trm
    farewell export runs/mine --out serving/mine --rows int4 --checkpoint newest --json export.json
    farewell export runs/mine --out serving/mine --experiment path/to/mine.py:experiment

Prints bytes by part beside those of the training checkpoint, how far scores are from those of
training's evaluation, and how long requests take. docs/serving.md tells how to score with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.named import load_named
from launch.terminal import result_console
from trainer.checkpoint_choice import AUTO
from trainer.experiment import Experiment
from trainer.report_tables import format_bytes
from trainer.run_folder import describe_machine, write_json
from trainer.serving.description import classes_of
from trainer.serving.export import TrainedRun, export_run
from trainer.serving.measure import agreement, latency, measured_rows, sizes, was_evaluated
from trainer.serving.predictor import Predictor
from trainer.serving.tables import RowKind


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """What is exported, and how.

    Args:
        run: run folder of `farewell train`, or a cell of a comparison.
        out: folder to write; an older export there is replaced as a whole.
        rows: how table rows are stored; int8 and int4 rows have a scale each.
        checkpoint: `newest`, `best` by the run's train.keep_best, a step, or `auto` for the best
            where the run has such, else the newest.
        precision: of the network's matrix products.
        experiment: `path/to/mine.py:function`, where the run has a tower of your own.
        measure: score rows of the test part, set them against training's evaluation, and time
            requests; needs the log.
        measure_rows: of the test part, at most.
        json: file to write what is printed to.
    """

    run: tyro.conf.Positional[Path]
    out: Path
    rows: RowKind = "int8"
    checkpoint: str = AUTO
    precision: Literal["trained", "fp32", "bf16"] = "trained"
    experiment: str | None = None
    measure: bool = True
    measure_rows: int = 100_000
    json: Path | None = None


def main(args: Sequence[str]) -> None:
    """Run `farewell export` with the words that follow the verb."""
    arguments = tyro.cli(ExportArgs, prog="farewell export", description=__doc__, args=args)
    export(arguments, result_console())


def export(arguments: ExportArgs, console: Console) -> dict[str, Any]:
    """Export, measure, print and write what was found.

    Raises:
        ValueError: for whatever is wrong with run, log or tokens.
    """
    if arguments.measure_rows < 1:
        raise ValueError(f"--measure-rows is {arguments.measure_rows}, expected at least 1")
    if not arguments.measure and arguments.measure_rows != ExportArgs.measure_rows:
        raise ValueError(
            f"--measure-rows {arguments.measure_rows} has no effect with --no-measure; leave one "
            "out"
        )
    classes = own_classes(arguments.experiment)
    run = TrainedRun.open(arguments.run, checkpoint=arguments.checkpoint, classes=classes)
    precision = None if arguments.precision == "trained" else arguments.precision
    predictor = export_run(run, arguments.out, rows=arguments.rows, precision=precision)
    found: dict[str, Any] = {
        "name": predictor.description.name,
        "step": predictor.description.step,
        "rows": arguments.rows,
        "precision": predictor.description.precision,
        "bytes": sizes(run, arguments.out),
    }
    console.print(size_table(found))
    if arguments.measure:
        found |= {"machine": describe_machine(), **_measure(arguments, run, predictor)}
        console.print(agreement_table(found["agreement"]))
        console.print(latency_table(found["latency"]))
    done = f"{arguments.out}: step {found['step']}, {arguments.rows} rows"
    console.print(done, soft_wrap=True, markup=False)
    if arguments.json is not None:
        write_json(arguments.json, found)
    return found


def own_classes(experiment: str | None) -> set[type]:
    """Config classes of a named experiment."""
    return set() if experiment is None else classes_of(load_named(experiment, Experiment))


def _measure(arguments: ExportArgs, run: TrainedRun, predictor: Predictor) -> dict[str, Any]:
    dataset = run.dataset()
    rows = measured_rows(run, dataset, arguments.measure_rows)
    precision = predictor.description.precision
    if was_evaluated(run) and precision == run.precision:
        reference = None
        compared = agreement(run, predictor, dataset, rows, reference=reference)
    else:
        with tempfile.TemporaryDirectory() as folder:
            reference = export_run(run, Path(folder) / "fp32", rows="fp32", precision=precision)
        compared = agreement(run, predictor, dataset, rows, reference=reference)
    return {"agreement": compared, "latency": latency(predictor, dataset, rows)}


def size_table(found: Mapping[str, Any]) -> Table:
    """Bytes by part, before and after."""
    before, after = found["bytes"]["checkpoint"], found["bytes"]["export"]
    table = Table(title=Text(f"{found['name']}, step {found['step']}: bytes"))
    for column in ("part", "training checkpoint", f"export, {found['rows']} rows"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in dict.fromkeys([*before, *after]):
        cells = [format_bytes(side[part]) if part in side else "-" for side in (before, after)]
        table.add_row(part, *cells)
    total = [format_bytes(sum(side.values())) for side in (before, after)]
    table.add_section()
    table.add_row("all", *total)
    return table


def agreement_table(found: Mapping[str, Any]) -> Table:
    """Scores against those that they should equal."""
    holds = "within" if found["holds"] else "ABOVE"
    table = Table(
        title=f"scores of {found['rows']:,} test rows against {found['against']}: {holds} the "
        f"tolerance of {found['tolerance']:g}"
    )
    for column in ("task", "largest difference", "mean", "AUC", "reference AUC", "change"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, values in found["tasks"].items():
        numbers = [values["auc"], values["reference_auc"], values["auc_change"]]
        table.add_row(
            Text(task),
            f"{values['max_difference']:.2e}",
            f"{values['mean_difference']:.2e}",
            *("-" if value is None else f"{value:.6f}" for value in numbers[:2]),
            "-" if numbers[2] is None else f"{numbers[2]:+.2e}",
        )
    return table


def latency_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """How long requests take."""
    threads = found[0]["threads"]
    table = Table(title=f"Predictor.score of dicts, {threads} thread{'s' * (threads > 1)}")
    for column in ("rows of a request", "calls", "p50 ms", "p99 ms", "rows/s"):
        table.add_column(column, justify="right")
    for one in found:
        table.add_row(
            str(one["rows"]),
            str(one["calls"]),
            f"{one['p50_ms']:.2f}",
            f"{one['p99_ms']:.2f}",
            f"{one['rows_per_s']:,.0f}",
        )
    return table
