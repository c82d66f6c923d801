"""Quality on the validation part while a run trains."""

from __future__ import annotations

import numpy as np

from trainer.data.dataset import Dataset
from trainer.data.schema import RowRange
from trainer.metrics import auc, log_loss
from trainer.predictions import Predictions


def validation_metrics(
    dataset: Dataset, rows: RowRange, predictions: Predictions
) -> dict[str, float]:
    """AUC and LogLoss of each task.

    Args:
        dataset: that holds the labels.
        rows: part of the log.
        predictions: of these rows, in any order.
    """
    labels = dataset.read(rows, dataset.schema.labels)
    values = {}
    for task, probabilities in predictions.aligned(rows).items():
        truth = labels[task].astype(np.float64)
        values[f"valid/{task}_auc"] = auc(truth, probabilities)
        values[f"valid/{task}_logloss"] = log_loss(truth, probabilities)
    return values
