r"""Sweep tower sizes of several models, fit loss over size, say whose exponent is larger.

    farewell scale scale.synthetic_high_churn
    farewell scale scale.synthetic_high_churn --seeds 3 --ranks 2

Fits L_inf + A N^-beta (TRM Eq. 8) to each side, with bootstrap intervals over test users and
trainings, and writes `scaling.json`, `.md`, `.png` and `.html`. A cell (a size and a seed) that
was trained before with the same settings is not trained again; one that was stopped goes on from
its newest checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from launch.cells import CELLS, Cells
from launch.named import load_named, name_and_options
from launch.prepare import prepare
from launch.terminal import result_console
from trainer.data.dataset import Dataset
from trainer.data.schema import RowRange
from trainer.evaluation import EvaluationSplit
from trainer.predictions import Predictions
from trainer.report_tables import rich_table
from trainer.run_folder import RunFolder, describe_machine, package_versions, write_json
from trainer.scaling_report import tables, write_scaling_report
from trainer.scaling_study import ScaledRun, ScalingStudy, build_scaling_report


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """How a scaling study is run.

    Args:
        seeds: every model is trained with seeds 0 to `seeds` - 1.
        ranks: processes on this machine.
        folder: of the report; by default `runs/<study>`.
        cells: folder of trained cells, shared with `farewell compare`.
        json: file to write the report to, beside `scaling.json` in the folder.
    """

    seeds: int = 1
    ranks: int = 2
    folder: Path | None = None
    cells: Path = CELLS
    json: Path | None = None


def main(args: Sequence[str]) -> None:
    """Run `farewell scale` with the words that follow the verb."""
    name, words = name_and_options(args, verb="scale", description=__doc__)
    study = load_named(name, ScalingStudy)
    options = tyro.cli(ScaleOptions, prog=f"farewell scale {name}", description=__doc__, args=words)
    scale(name, study, options)


def scale(name: str, study: ScalingStudy, options: ScaleOptions) -> None:
    """Train what is missing, fit, print and write the report of the study named so.

    Raises:
        ValueError: for whatever is wrong with data, tokens or settings.
        RankFailedError: when a rank of a cell failed; finished cells are kept.
    """
    console = result_console()
    for experiment in (study.baseline, *study.experiments):
        experiment.check_ranks(options.ranks)
        prepare(experiment, console)
    data = study.baseline.data
    dataset = Dataset.open(data.folder, data.schema)
    splits = dataset.split(data.split)
    cells = Cells(root=options.cells, ranks=options.ranks)
    baseline = cells.trained(study.baseline, seeds=options.seeds, title="baseline", console=console)
    runs = {
        side.title: [
            scaled_run(
                cells.trained(
                    experiment,
                    seeds=options.seeds,
                    title=f"{side.title}, size {number + 1} of {len(side.experiments)}",
                    console=console,
                ),
                splits.test,
            )
            for number, experiment in enumerate(side.experiments)
        ]
        for side in study.sides
    }
    with console.status("fitting"):
        report = build_scaling_report(
            study,
            runs,
            scaled_run(baseline, splits.test),
            EvaluationSplit.from_dataset(dataset, splits, splits.test),
            dataset=dataset.schema.name,
            command=f"farewell scale {name} --seeds {options.seeds}",
            machine={key: str(value) for key, value in describe_machine().items()},
            versions=package_versions(),
        )
    page = write_scaling_report(options.folder or Path("runs") / study.name, report)
    if options.json is not None:
        write_json(options.json, report)
    for table in tables(report):
        console.print(rich_table(table))
        console.print()
    for word in report["words"]:
        console.print(word, markup=False, highlight=False)
    console.print(f"report: {page}", soft_wrap=True)


def scaled_run(cells: Mapping[int, RunFolder], rows: RowRange) -> ScaledRun:
    """One model read back from the cells of its seeds."""
    costs = [json.loads(cell.result.read_text()) for cell in cells.values()]
    return ScaledRun(
        dense_params=costs[0]["dense_params"],
        flops_per_batch=costs[0]["flops_per_batch"],
        flops_batch=costs[0]["flops_batch"],
        samples=costs[0]["samples"],
        train_seconds=float(np.median([cost["train_seconds"] for cost in costs])),
        scores=tuple(
            Predictions.load(cell.path / RunFolder.predictions_of("test")).aligned(rows)
            for cell in cells.values()
        ),
    )
