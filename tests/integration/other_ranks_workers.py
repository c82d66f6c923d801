"""What ranks do in the tests of resuming on other ranks; spawned processes import it."""

from __future__ import annotations

from pathlib import Path

from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import score_split, train
from trainer.warm_start import WarmStart


def train_whole(experiment: Experiment, folder: Path, plan: Path | None = None) -> None:
    """Train without interruption."""
    train(experiment, folder, plan=plan)
    stop_ranks()


def score_test(experiment: Experiment, folder: Path, path: Path) -> None:
    """Score the test part with the newest checkpoint."""
    score_split(experiment, folder, "test", path)
    stop_ranks()


def train_warm(experiment: Experiment, folder: Path, warm_start: WarmStart) -> None:
    """Train, beginning with what another run has learned."""
    train(experiment, folder, warm_start=warm_start)
    stop_ranks()
