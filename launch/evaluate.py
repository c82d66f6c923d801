r"""Metrics of a run on a part of the log, with intervals, and AUC by bucket.

    farewell evaluate trm_rankmixer.movielens1m --folder runs/trm_rankmixer/20260101-120000
    farewell evaluate trm_rankmixer.movielens1m --folder runs/mine --split valid --json valid.json

Settings that were changed on the command line of `farewell train` must be given again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from launch.named import load_named, name_and_options
from launch.ranks import run_on_ranks
from launch.rows import trained_row
from launch.terminal import result_console
from trainer.checkpoint import Checkpoints, read_state
from trainer.data.dataset import Dataset
from trainer.evaluation import EvaluationSplit
from trainer.experiment import Experiment
from trainer.loop import SplitName, score_split
from trainer.report import build_report, print_report
from trainer.run_folder import RunFolder, describe_machine, package_versions, write_json


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Which run, which part of the log.

    Args:
        folder: run folder of `farewell train`.
        split: part of the log.
        json: file to write the metrics to.
        experiment: that was trained.
    """

    folder: Path
    split: SplitName = "test"
    json: Path | None = None
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: Sequence[str]) -> None:
    """Run `farewell evaluate` with the words that follow the verb."""
    name, options = name_and_options(args, verb="evaluate", description=__doc__)
    command = tyro.cli(
        EvaluateCommand,
        prog=f"farewell evaluate {name}",
        description=__doc__,
        default=EvaluateCommand(folder=tyro.MISSING, experiment=load_named(name, Experiment)),
        args=options,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    evaluate(command, result_console())


def evaluate(command: EvaluateCommand, console: Console) -> None:
    """Score the split on as many ranks as trained the run; print and write the metrics.

    Raises:
        ValueError: when there is no checkpoint, or it was saved with other settings.
    """
    run, experiment = RunFolder(command.folder), command.experiment
    newest = Checkpoints(run.checkpoints, keep=1).newest()
    if newest is None:
        raise ValueError(f"{run.checkpoints}: no complete checkpoint; train first")
    path = run.path / RunFolder.predictions_of(command.split)
    with console.status(f"scoring {command.split}"):
        run_on_ranks(
            score_split,
            read_state(newest)["world_size"],
            experiment,
            command.folder,
            command.split,
            path,
            log_folder=command.folder / "log",
        )
    report = run_report(experiment, run, command.split)
    print_report(report, console)
    if command.json is not None:
        write_json(command.json, report)


def run_report(experiment: Experiment, run: RunFolder, split: SplitName) -> dict[str, Any]:
    """The report of one run on the part of the log that it has scored."""
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    splits = dataset.split(experiment.data.split)
    rows = getattr(splits, split)
    tower = type(experiment.model.tower).__name__.removesuffix("Config")
    row = trained_row(
        experiment.name,
        tower,
        {experiment.train.seed: run},
        experiment,
        rows,
        RunFolder.predictions_of(split),
    )
    return build_report(
        experiment=experiment.name,
        dataset=dataset.schema.name,
        split=EvaluationSplit.from_dataset(dataset, splits, rows),
        split_name=split,
        rows=[row],
        machine={key: str(value) for key, value in describe_machine().items()},
        versions=package_versions(),
    )
