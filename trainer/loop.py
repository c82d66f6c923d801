"""What every rank of a run calls: train, or score with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sharding.plan_io import read_given_plan
from trainer.checkpoint_choice import AUTO
from trainer.distributed import start_ranks
from trainer.experiment import Experiment
from trainer.run import Trainer
from trainer.run_folder import RunFolder, log_to, write_json
from trainer.run_model import read_plan
from trainer.stop import StopNotice
from trainer.warm_start import WarmStart
from trainer.watchdog import HANG_SECONDS, Watchdog, collective_timeout

SplitName = Literal["train", "valid", "test"]


def train(
    experiment: Experiment,
    folder: Path,
    resume: bool = False,
    plan: Path | None = None,
    hang_seconds: float = HANG_SECONDS,
    warm_start: WarmStart | None = None,
) -> None:
    """Train, evaluate and leave a run folder; every rank calls this.

    Args:
        experiment: what to do.
        folder: of the run.
        resume: go on from the newest finished checkpoint; without one, start anew.
        plan: `plan.json` of `farewell plan` (or of a run) that is executed instead of asking the
            planner; the run keeps it for its resumption and evaluation.
        hang_seconds: without a step, an evaluated batch or a checkpoint, after which the run ends
            and names the rank that holds the others up.
        warm_start: what to take over from another run before the first step; the run keeps it in
            case that it is resumed before its first checkpoint.

    Raises:
        PlanMismatchError: when the plan was made for other tables, ranks or devices.
        ValueError: for whatever is wrong with experiment, data, tokens or checkpoint.
        NonFiniteLossError: when the loss is NaN or infinite.
        StoppedError: when a rank was told to stop; the run is saved.
    """
    ranks = start_ranks(collective_timeout(hang_seconds))
    experiment.check_ranks(ranks.world_size)
    run = RunFolder(folder)
    if not resume and run.checkpoints.exists():
        raise ValueError(
            f"{folder}: holds an earlier run; give another --folder, or --resume to go on with it"
        )
    planned = None
    if plan is not None:
        planned = read_given_plan(plan, ranks.world_size)
        read_plan(planned, experiment, ranks)  # refused before anything is written
    if ranks.is_first:
        run.create(experiment)
        if planned is not None:
            write_json(run.given_plan, planned)
        if warm_start is not None:
            write_json(run.given_warm_start, warm_start.to_dict())
    ranks.barrier()
    log_to(run.log(ranks.rank))
    with StopNotice() as stop:
        watchdog = Watchdog(ranks, hang_seconds, run.log(ranks.rank))
        trainer = Trainer(experiment, run, ranks, stop, watchdog)
        with watchdog:
            trainer.run(resume=resume)


def score_split(
    experiment: Experiment, folder: Path, split: SplitName, path: Path, checkpoint: str = AUTO
) -> None:
    """Score a part of the log with a checkpoint of a run; every rank calls this.

    Args:
        experiment: that was trained, with the same settings.
        folder: of the run.
        split: part of the log.
        path: file that the predictions are written to.
        checkpoint: which one, see :func:`~trainer.checkpoint_choice.choose`.

    Raises:
        CheckpointError: when there is no such checkpoint, or it is of other settings.
    """
    ranks = start_ranks()
    run = RunFolder(folder)
    log_to(run.log(ranks.rank))
    trainer = Trainer(experiment, run, ranks)
    trainer.load_chosen(checkpoint)
    predictions = trainer.score(getattr(trainer.splits, split))
    if predictions is not None:
        predictions.save(path)
    ranks.barrier()
