r"""Train a named experiment, or one of your own.

    farewell train trm_rankmixer.movielens1m --ranks 2
    farewell train trm_rankmixer.movielens1m --train.max-steps 100 --optim.sparse-lr 0.01
    farewell train mine.py:experiment --folder runs/mine --resume
    farewell train mine.py:experiment --ranks 2 --plan runs/mine/plan/plan_mine_1.json
    torchrun --nproc-per-node 2 -m launch.cli train trm_rankmixer.movielens1m --folder runs/mine

Under torchrun or torchx this process is one of the ranks; otherwise `--ranks` starts them here.
Told to stop (SIGTERM, SIGUSR1, SIGHUP, Ctrl-C), a run finishes its step, saves, and ends with exit
code 75; the same command with `--resume` goes on. docs/clusters.md tells of many nodes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from launch.evaluate import run_report
from launch.experiment_command import experiment_command
from launch.preflight import print_preflight
from launch.prepare import prepare
from launch.ranks import run_on_ranks, under_torchrun
from launch.terminal import result_console
from trainer.checkpoint import Checkpoints
from trainer.checkpoint_choice import AUTO, choose
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.report import print_report, write_report
from trainer.run_folder import RunFolder, write_json
from trainer.stop import StoppedError
from trainer.warm_start import WarmStart
from trainer.watchdog import HANG_SECONDS, collective_timeout


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """A run: where it goes, on how many ranks, and the experiment.

    Args:
        folder: run folder; by default `runs/<experiment>/<time>`, with `--resume` the newest one.
        resume: go on from the newest complete checkpoint of `folder`.
        ranks: processes to start on this machine (under torchrun, torchrun decides).
        plan: sharding plan to execute, from `farewell plan` or an earlier run.
        hang_seconds: time without a step, an evaluated batch or a checkpoint after which the run
            ends, naming the rank that holds the others up.
        preflight: on several hosts, first let every rank exchange with every other.
        warm_start: run or checkpoint to begin with: what fits by name, shape and meaning is taken
            over, and `warm_start.json` in the run folder tells what became of each tensor.
        warm_start_parts: the network alone, the tables alone, or both.
        warm_start_tables: tables to take over; all that fit by default.
        warm_start_optimizer: take optimizer state over as well.
        warm_start_remap: folder that `farewell tokenize --drift-from` wrote, for token tables that
            were trained with another vocabulary.
        json: file to write the result to.
        experiment: what is trained.
    """

    folder: Path | None = None
    resume: bool = False
    ranks: int = 1
    plan: Path | None = None
    hang_seconds: float = HANG_SECONDS
    preflight: bool = True
    warm_start: Path | None = None
    warm_start_parts: Literal["all", "dense", "tables"] = "all"
    warm_start_tables: tuple[str, ...] = ()
    warm_start_optimizer: bool = False
    warm_start_remap: Path | None = None
    json: Path | None = None
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]


def main(args: Sequence[str]) -> None:
    """Run `farewell train` with the words that follow the verb."""
    command = experiment_command(
        lambda experiment: TrainCommand(experiment=experiment),
        args,
        verb="train",
        description=__doc__,
    )
    chosen_warm_start(command)  # refused before data is prepared
    if under_torchrun():
        folder = _train_as_rank(command)
    else:
        folder = command.folder or _folder(command)
        _train_here(command, folder)
    if os.environ.get("RANK", "0") == "0":
        _tell(command, RunFolder(folder))


def _train_here(command: TrainCommand, folder: Path) -> None:
    """Start the ranks on this machine."""
    command.experiment.check_ranks(command.ranks)
    prepare(command.experiment, Console())
    try:
        run_on_ranks(
            train,
            command.ranks,
            command.experiment,
            folder,
            command.resume,
            command.plan,
            command.hang_seconds,
            chosen_warm_start(command),
            log_folder=folder / "log",
        )
    except StoppedError as error:
        raise StoppedError(f"{error}; to go on: --folder {folder} --resume") from error


def _train_as_rank(command: TrainCommand) -> Path:
    """Be one of the ranks that torchrun started, on this host and perhaps others."""
    if command.folder is None:
        raise ValueError("under torchrun every rank must agree on the run folder: give --folder")
    if command.ranks != TrainCommand.ranks:
        raise ValueError(f"--ranks {command.ranks}: under torchrun, --nproc-per-node decides")
    _end_with_parent()
    several_hosts = os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]
    if several_hosts and command.preflight:
        print_preflight(collective_timeout=collective_timeout(command.hang_seconds))
    train(
        command.experiment,
        command.folder,
        command.resume,
        command.plan,
        command.hang_seconds,
        chosen_warm_start(command),
    )
    return command.folder


def _end_with_parent() -> None:
    """Be told to stop when torchrun is killed, which then can't tell its ranks.

    A rank that outlived it would go on writing beside the job's next start. On Linux alone.
    """
    _prctl_pr_set_pdeathsig(signal.SIGTERM)


def chosen_warm_start(command: TrainCommand) -> WarmStart | None:
    """What to begin with, as the options say."""
    if command.warm_start is None:
        for name in ("parts", "tables", "optimizer", "remap"):
            option = f"warm_start_{name}"
            if getattr(command, option) != getattr(TrainCommand, option):
                raise ValueError(
                    f"--{option.replace('_', '-')} has no effect without --warm-start; name the "
                    "run or checkpoint to begin with"
                )
        return None
    if command.resume:
        raise ValueError(
            "--warm-start begins a run and --resume goes on with one; leave one of them out (a "
            "resumed run remembers what it was warm-started from)"
        )
    return WarmStart(
        checkpoint=command.warm_start.resolve(),
        parts=command.warm_start_parts,
        tables=command.warm_start_tables,
        optimizer_state=command.warm_start_optimizer,
        remap=None if command.warm_start_remap is None else command.warm_start_remap.resolve(),
    )


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
    if run.warm_start_report.exists():
        console.print(warm_start_table(json.loads(run.warm_start_report.read_text())))
    report = run_report(command.experiment, run, "test", RunFolder.predictions_of("test"))
    print_report(report, console)
    write_report(run.path, report)
    chosen = choose(Checkpoints(run.checkpoints), AUTO)
    if not chosen.is_newest:
        console.print(
            "these are the last step's weights; `farewell evaluate` and `farewell export` take "
            f"step {chosen.step} ({chosen.why}) unless told --checkpoint newest",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        f"{run.path}: report.html; tensorboard --logdir {run.tensorboard}", soft_wrap=True
    )


def warm_start_table(taken: Sequence[Mapping[str, Any]]) -> Table:
    """What a warm start took over, left behind and began anew; tensors of the network as one."""
    table = Table(title="warm start")
    for column in ("what", "outcome", "why"):
        table.add_column(column)
    network: dict[tuple[str, str], int] = {}
    for one in taken:
        if one["name"].startswith("network/"):
            reason = (one["outcome"], one["why"] if one["outcome"] in ("taken", "left") else "")
            network[reason] = network.get(reason, 0) + 1
        else:
            table.add_row(one["name"], one["outcome"], one["why"])
    for (outcome, why), count in network.items():
        table.add_row(f"{count} tensors of the network", outcome, why)
    return table
