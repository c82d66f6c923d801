r"""Metrics of a run on a part of the log, with intervals, and AUC by bucket.

    farewell evaluate trm_rankmixer.movielens1m --folder runs/trm_rankmixer/20260101-120000
    farewell evaluate trm_rankmixer.movielens1m --folder runs/mine --split valid --json valid.json
    farewell evaluate mine.py:with_next_token --folder runs/mine --generate 50

Settings that were changed on the command line of `farewell train` must be given again. It runs on
as many ranks as trained the run; under torchrun or torchx this process is one of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from launch.named import load_named, name_and_options
from launch.ranks import run_on_ranks
from launch.rows import trained_row
from launch.terminal import result_console
from trainer.checkpoint import Checkpoints, read_state
from trainer.data.dataset import Dataset
from trainer.evaluation import EvaluationSplit
from trainer.experiment import Experiment
from trainer.generated_recall import check_can_generate, generate_split
from trainer.loop import SplitName, score_split
from trainer.report import build_report, print_report
from trainer.run_folder import RunFolder, describe_machine, package_versions, write_json


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Which run, which part of the log.

    Args:
        folder: run folder of `farewell train`.
        split: part of the log.
        ranks: processes to start on this machine; by default as many as trained the run.
        generate: width of a beam; also generate the tokens of positive impressions' items with
            the next-token objective, and set their recall against the most popular tuples.
        json: file to write the metrics to.
        experiment: that was trained.
    """

    folder: Path
    split: SplitName = "test"
    ranks: int | None = None
    generate: int | None = None
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
    """Score the split on any number of ranks; print and write the metrics.

    Raises:
        ValueError: when there is no checkpoint, or it was saved with other settings.
    """
    run, experiment = RunFolder(command.folder), command.experiment
    if command.generate is not None:
        check_can_generate(experiment, command.generate)
    newest = Checkpoints(run.checkpoints).newest()
    if newest is None:
        raise ValueError(f"{run.checkpoints}: no complete checkpoint; train first")
    world_size = command.ranks or read_state(newest)["world_size"]
    path = run.path / RunFolder.predictions_of(command.split)
    with console.status(f"scoring {command.split}"):
        run_on_ranks(
            score_split,
            world_size,
            experiment,
            command.folder,
            command.split,
            path,
            log_folder=command.folder / "log",
        )
    generated = run.path / f"generated_{command.split}.json"
    if command.generate is not None:
        with console.status(f"generating for {command.split}"):
            run_on_ranks(
                generate_split,
                world_size,
                experiment,
                command.folder,
                command.split,
                command.generate,
                generated,
                log_folder=command.folder / "log",
            )
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's ranks; the first one tells
        return
    report = run_report(experiment, run, command.split)
    print_report(report, console)
    if command.generate is not None:
        report["generation"] = json.loads(generated.read_text())
        console.print(generation_table(report["generation"]))
    if command.json is not None:
        write_json(command.json, report)


def generation_table(found: Mapping[str, Any]) -> Table:
    """Recall of generated and of popular tuples, as `generated_recall` found it."""
    table = Table(
        title=f"{found['contexts']:,} positive impressions, {found['tuples']:,} tuples in the "
        f"catalogue, beam {found['beam_width']}"
    )
    table.add_column("tuples")
    table.add_column(f"recall@{found['recall_at']}", justify="right")
    table.add_row("generated", f"{found['generated']:.4f}")
    table.add_row("most popular", f"{found['popularity']:.4f}")
    ratio = "none: popularity found nothing" if found["ratio"] is None else f"{found['ratio']:.2f}x"
    table.add_row("generated / most popular", ratio)
    return table


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
