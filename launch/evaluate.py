r"""Metrics of a run on a part of the log, with intervals, and AUC by bucket.

    farewell evaluate trm_rankmixer.movielens1m --folder runs/trm_rankmixer/20260101-120000
    farewell evaluate trm_rankmixer.movielens1m --folder runs/mine --split valid --json valid.json
    farewell evaluate trm_joint.movielens1m --folder runs/mine --checkpoint newest --ranks 1
    farewell evaluate mine.py:with_next_token --folder runs/mine --generate 50

Settings that were changed on the command line of `farewell train` must be given again. It runs on
as many ranks as saved the checkpoint, or on `--ranks`; under torchrun or torchx this process is one
of those that these started.
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

from launch.experiment_command import experiment_command
from launch.ranks import run_on_ranks, under_torchrun
from launch.rows import trained_row
from launch.terminal import result_console
from trainer.checkpoint import Checkpoints
from trainer.checkpoint_choice import AUTO, choose
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
        checkpoint: `newest`, `best` by the run's train.keep_best, a step, or `auto` for the best
            where the run has such, else the newest.
        ranks: processes to start on this machine; by default as many as saved the checkpoint
            (under torchrun, torchrun decides).
        generate: width of a beam; also generate the tokens of positive impressions' items with
            the next-token objective, and set their recall against the most popular tuples.
        json: file to write the metrics to.
        experiment: that was trained.
    """

    folder: Path
    split: SplitName = "test"
    checkpoint: str = AUTO
    ranks: int | None = None
    generate: int | None = None
    json: Path | None = None
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: Sequence[str]) -> None:
    """Run `farewell evaluate` with the words that follow the verb."""
    command = experiment_command(
        lambda experiment: EvaluateCommand(folder=tyro.MISSING, experiment=experiment),
        args,
        verb="evaluate",
        description=__doc__,
    )
    evaluate(command, result_console())


def evaluate(command: EvaluateCommand, console: Console) -> None:
    """Score the split on any number of ranks; print and write the metrics.

    Raises:
        ValueError: when there is no such checkpoint, or it was saved with other settings.
    """
    run, experiment = RunFolder(command.folder), command.experiment
    if command.generate is not None:
        check_can_generate(experiment, command.generate)
    chosen = choose(Checkpoints(run.checkpoints), command.checkpoint)
    world_size = command.ranks or chosen.world_size
    if under_torchrun():
        if command.ranks is not None:
            raise ValueError(f"--ranks {command.ranks}: under torchrun, --nproc-per-node decides")
        world_size = int(os.environ["WORLD_SIZE"])
    # What training left of its last weights is not written over with scores of other ones.
    step = None if chosen.is_newest else chosen.step
    predictions = RunFolder.predictions_of(command.split, step)
    with console.status(f"scoring {command.split}"):
        run_on_ranks(
            score_split,
            world_size,
            experiment,
            command.folder,
            command.split,
            run.path / predictions,
            str(chosen.step),
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
                str(chosen.step),
                log_folder=command.folder / "log",
            )
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's ranks; the first one tells
        return
    report = run_report(experiment, run, command.split, predictions)
    report["checkpoint"] = {"step": chosen.step, "chosen": chosen.why}
    print_report(report, console)
    console.print(f"checkpoint of step {chosen.step} ({chosen.why})", markup=False)
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


def run_report(
    experiment: Experiment, run: RunFolder, split: SplitName, predictions: str
) -> dict[str, Any]:
    """The report of one run on the part of the log that it has scored.

    Args:
        experiment: that was trained.
        run: its folder.
        split: part of the log.
        predictions: name of the file of scores in the run folder.
    """
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
        predictions,
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
