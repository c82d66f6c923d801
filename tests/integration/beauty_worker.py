"""What the one rank does in the test of Amazon Beauty; spawned processes import it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.distributed import stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train
from trainer.retrieval_run import Retrieval, TrainedRetriever
from trainer.retrieval_task import RetrievalTask
from trainer.run_folder import write_json


def train_and_measure(experiment: Experiment, folder: Path) -> None:
    """Train a run, measure its test part, and keep the lists for the cases of the task."""
    train(experiment, folder)
    stop_ranks()
    model = TrainedRetriever(experiment, folder, Retrieval(width=20, top=10))
    splits = model.trainer.splits
    write_json(folder / "measured.json", model.measure(splits.test))
    task = RetrievalTask.of_log(model.trainer.dataset, splits)
    order = np.argsort(task.test.row)
    found = model.retrieve_rows(splits.test, task.test.row[order])
    np.savez(folder / "lists.npz", lists=found.by_recall_CM, user=task.test.user[order])
    stop_ranks()
