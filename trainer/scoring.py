"""Score a part of the log on all ranks and bring the scores together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from trainer.batch import Batch
from trainer.distributed import Ranks
from trainer.predictions import Predictions


def score(
    model: nn.Module, batches: Iterable[Batch], ranks: Ranks, tasks: tuple[str, ...]
) -> Predictions | None:
    """Probabilities of every row, on rank 0; None elsewhere.

    Args:
        model: returns loss and outputs of a batch; left in the mode that it was in.
        batches: of this rank; every rank must have as many.
        ranks: this process among all.
        tasks: names of the labels, in their order.
    """
    was_training = model.training
    model.eval()
    rows, probabilities = [], []
    with torch.no_grad():
        for batch in batches:
            _, outputs = model(batch.to(ranks.device))
            rows.append(outputs.row_B.cpu().numpy())
            probabilities.append(torch.sigmoid(outputs.logits_BN.double()).cpu().numpy())
    model.train(was_training)
    gathered = ranks.gather((np.concatenate(rows), np.concatenate(probabilities)))
    if gathered is None:
        return None
    all_rows = np.concatenate([row for row, _ in gathered])
    scores_BN = np.concatenate([scores for _, scores in gathered])
    return Predictions(
        rows=all_rows,
        scores={task: np.ascontiguousarray(scores_BN[:, n]) for n, task in enumerate(tasks)},
    )
