"""What ranks do in the test of generation; spawned processes import it."""

from __future__ import annotations

from pathlib import Path

from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.generated_recall import generate_split
from trainer.loop import train


def train_and_generate(experiment: Experiment, folder: Path, path: Path) -> None:
    """Train a run, then generate with its checkpoint in the same processes."""
    train(experiment, folder)
    generate(experiment, folder, path)


def generate(experiment: Experiment, folder: Path, path: Path) -> None:
    """Generate with a run's checkpoint."""
    generate_split(experiment, folder, "valid", 16, path)
    stop_ranks()
