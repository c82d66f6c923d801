"""What the one rank does in the tests of retrieval; spawned processes import it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainer.data.schema import RowRange
from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.retrieval_run import Retrieval, TrainedRetriever


def train_smoke(experiment: Experiment, folder: Path) -> None:
    """Train a run."""
    train(experiment, folder)
    stop_ranks()


def answer(
    experiment: Experiment,
    run: Path,
    users: Path,
    out: Path,
    options: Retrieval,
    cross: Path | None = None,
) -> None:
    """Answer requests."""
    TrainedRetriever(experiment, run, options).for_requests(users, out, cross)
    stop_ranks()


def measure(experiment: Experiment, run: Path, rows: RowRange, folder: Path) -> None:
    """Measure rows, and keep the lists and scores that they were measured by."""
    model = TrainedRetriever(experiment, run, Retrieval(width=20, top=5))
    (folder / "measured.json").write_text(json.dumps(model.measure(rows)))
    model.retrieve_rows(rows, np.arange(rows.start, rows.stop)).save(folder / "part.npz")
    stop_ranks()


def refusals(
    experiment: Experiment, run: Path, files: Mapping[str, tuple[Path, Path | None]], out: Path
) -> None:
    """What is said of each pair of files (requests, pairs), and what was left behind."""
    model = TrainedRetriever(experiment, run, Retrieval(width=5, top=2))
    said = {}
    for name, (users, cross) in files.items():
        try:
            model.for_requests(users, out.parent / "never.parquet", cross)
            said[name] = "nothing"
        except ValueError as error:
            said[name] = str(error)
    said["left behind"] = sorted(path.name for path in out.parent.glob("*never*"))
    out.write_text(json.dumps(said))
    stop_ranks()
