"""What ranks do in the tests of preflight, stop signals and watchdog; processes import it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from launch.preflight import PROBES, preflight
from tests.integration.workers import stopping_at
from trainer import run
from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.stop import StoppedError

FOREVER = 120


def fly(folder: Path) -> None:
    """Preflight, and leave its report."""
    report = preflight(seconds=30)
    (folder / f"rank_{os.environ['RANK']}.txt").write_text(str(report))
    stop_ranks()


def hang_in_a_probe(seconds: float) -> None:
    """Rank 1 does not come to the last exchange."""

    def hangs(ranks, group):
        if ranks.rank == 1:
            time.sleep(FOREVER)

    hangs.__name__ = "before"
    preflight(seconds=seconds, probes=(hangs, *PROBES))


def stay_away(seconds: float) -> None:
    """Rank 1 never gets as far as the preflight."""
    if os.environ["RANK"] == "1":
        time.sleep(FOREVER)
    preflight(seconds=seconds)


def lie(seconds: float) -> None:
    """Rank 1 finds a wrong sum."""

    def wrong(ranks, group):
        if ranks.rank == 1:
            raise RuntimeError("sum is 2, expected 3")

    preflight(seconds=seconds, probes=(wrong,))


def train_and_signal(experiment: Experiment, folder: Path, step: int, rank: int) -> None:
    """Train whole; train again, with SIGTERM to one rank at `step`; go on."""
    train(experiment, folder / "whole")
    stopped = folder / "stopped"

    def tell() -> None:
        if os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with stopping_at(step, tell):
            train(experiment, stopped)
    except StoppedError as error:
        (folder / f"message_{os.environ['RANK']}.txt").write_text(str(error))
    assert not (stopped / "result.json").exists()
    train(experiment, stopped, resume=True)
    stop_ranks()


def be_told_while_scoring(experiment: Experiment, folder: Path) -> None:
    """Train, with SIGTERM to rank 1 in the first evaluation; go on, with one in the last scoring.

    Leaves what was said; then goes on to the end.
    """
    real = run.score
    stopped, said = folder / "told_while_scoring", []

    def score_and_tell(model, batches, *more):
        def told():
            for at, batch in enumerate(batches):
                if at == 0 and os.environ["RANK"] == "1":
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return real(model, told(), *more)

    run.score = score_and_tell
    try:
        train(experiment, stopped)
    except StoppedError as error:
        said.append(str(error))
    calls = 0

    def tell_the_last(*arguments):
        nonlocal calls
        calls += 1
        return (score_and_tell if calls == 4 else real)(*arguments)

    run.score = tell_the_last  # what is owed of step 10, steps 20 and 22, the test part
    try:
        train(experiment, stopped, resume=True)
    except StoppedError as error:
        said.append(str(error))
    run.score = real
    assert not (stopped / "result.json").exists()
    train(experiment, stopped, resume=True)
    (folder / f"said_{os.environ['RANK']}.json").write_text(json.dumps(said))
    stop_ranks()


def train_and_hang(experiment: Experiment, folder: Path, step: int, rank: int) -> None:
    """Train; at `step` one rank does nothing any more."""

    def hang() -> None:
        if os.environ["RANK"] == str(rank):
            time.sleep(FOREVER)

    with stopping_at(step, hang):
        train(experiment, folder, hang_seconds=3)


def train_and_freeze(experiment: Experiment, folder: Path, step: int, rank: int) -> None:
    """Train; at `step` one process is stopped, all its threads with it."""

    def freeze() -> None:
        if os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), signal.SIGSTOP)

    with stopping_at(step, freeze):
        train(experiment, folder, hang_seconds=3)
