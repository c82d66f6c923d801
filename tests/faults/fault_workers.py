"""What ranks do in the tests of faults; spawned processes import it."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from tests.integration.workers import stopping_at
from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.tracking import Tracker


def train_whole(experiment: Experiment, folder: Path) -> None:
    """Train without interruption."""
    train(experiment, folder)
    stop_ranks()


def resume(experiment: Experiment, folder: Path) -> None:
    """Go on from the newest checkpoint."""
    train(experiment, folder, resume=True)
    stop_ranks()


def train_with_a_full_disk(experiment: Experiment, folder: Path, step: int) -> None:
    """Train; from `step` on the system lets no file grow beyond 16 KiB."""

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.RLIM_INFINITY))

    with stopping_at(step, fill):
        train(experiment, folder)


def train_with_a_full_disk_for_logs(experiment: Experiment, folder: Path, step: int) -> None:
    """Train; from `step` on lines of metrics go to a device that is always full."""
    trackers: list[Tracker] = []
    enter = Tracker.__enter__

    def noted(self: Tracker) -> Tracker:
        trackers.append(self)
        return enter(self)

    Tracker.__enter__ = noted

    def fill() -> None:
        for tracker in trackers:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, tracker._file.fileno())

    with stopping_at(step, fill):
        train(experiment, folder)


def train_and_truncate(experiment: Experiment, folder: Path, step: int, file: Path) -> None:
    """Train; at `step` somebody cuts a file of the log in half."""

    def truncate() -> None:
        os.truncate(file, file.stat().st_size // 2)

    with stopping_at(step, truncate):
        train(experiment, folder)
