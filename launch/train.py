r"""Train a named experiment, or one of your own.

    farewell train trm_rankmixer.movielens1m --ranks 2
    farewell train trm_rankmixer.movielens1m --train.max-steps 100 --optim.sparse-lr 0.01
    farewell train mine.py:experiment --folder runs/mine --resume
    farewell train mine.py:experiment --ranks 2 --plan runs/mine/plan/plan_mine_1.json
    torchrun --nproc-per-node 2 -m launch.cli train trm_rankmixer.movielens1m --folder runs/mine

Under torchrun or torchx this process is one of the ranks; otherwise `--ranks` starts them here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from launch.evaluate import run_report
from launch.named import load_named, name_and_options
from launch.prepare import prepare
from launch.ranks import run_on_ranks, under_torchrun
from launch.terminal import result_console
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.report import print_report, write_report
from trainer.run_folder import RunFolder, write_json


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """A run: where it goes, on how many ranks, and the experiment.

    Args:
        folder: run folder; by default `runs/<experiment>/<time>`, with `--resume` the newest one.
        resume: go on from the newest complete checkpoint of `folder`.
        ranks: processes to start on this machine (under torchrun, torchrun decides).
        plan: sharding plan to execute, from `farewell plan` or an earlier run.
        json: file to write the result to.
        experiment: what is trained.
    """

    folder: Path | None = None
    resume: bool = False
    ranks: int = 1
    plan: Path | None = None
    json: Path | None = None
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: Sequence[str]) -> None:
    """Run `farewell train` with the words that follow the verb."""
    name, options = name_and_options(args, verb="train", description=__doc__)
    command = tyro.cli(
        TrainCommand,
        prog=f"farewell train {name}",
        description=__doc__,
        default=TrainCommand(experiment=load_named(name, Experiment)),
        args=options,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
    )
    folder = command.folder or _folder(command)
    if not under_torchrun():
        command.experiment.check_ranks(command.ranks)
        prepare(command.experiment, Console())
        run_on_ranks(
            train,
            command.ranks,
            command.experiment,
            folder,
            command.resume,
            command.plan,
            log_folder=folder / "log",
        )
    elif command.folder is None:
        raise ValueError("under torchrun every rank must agree on the run folder: give --folder")
    else:
        train(command.experiment, folder, command.resume, command.plan)
    if os.environ.get("RANK", "0") == "0":
        _tell(command, RunFolder(folder))


def _folder(command: TrainCommand) -> Path:
    runs = Path("runs") / command.experiment.name
    if command.resume:
        earlier = sorted(path for path in runs.glob("*") if (path / "config.json").exists())
        if not earlier:
            raise ValueError(f"--resume: no run in {runs}; give --folder, or train without it")
        return earlier[-1]
    return runs / datetime.now().strftime("%Y%m%d-%H%M%S")


def _tell(command: TrainCommand, run: RunFolder) -> None:
    """Evaluate the test rows, write the run's report, print it."""
    result = json.loads(run.result.read_text())
    if command.json is not None:
        write_json(command.json, result)
    console = result_console()
    report = run_report(command.experiment, run, "test")
    print_report(report, console)
    write_report(run.path, report)
    console.print(
        f"{run.path}: report.html; tensorboard --logdir {run.tensorboard}", soft_wrap=True
    )
