"""What ranks do in the tests of non-finite losses; spawned processes import it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from tests.integration.tiny_model import Case, batches_of_ranks
from tests.integration.workers import build, table_parts
from trainer.distributed import start_ranks, stop_ranks
from trainer.parallelize import ParallelModel
from trainer.pipeline import NonFiniteLossError, RankingPipeline

CAUSES = ("feature", "label", "table", "weight", "layer")


def meet_causes(cases: list[Case], folder: Path) -> None:
    """Train each case for a step, then let it meet each cause; leaves what was said."""
    ranks = start_ranks()
    said = {}
    for case in cases:
        for cause in CAUSES:
            parallel = build(case, ranks)
            parallel.model.train()
            pipeline = RankingPipeline(
                parallel,
                ranks,
                folder / case.name / cause,
                dense_features=("age", "price", "rank"),
                labels=("click", "play"),
            )
            batches = [parts[ranks.rank] for parts in batches_of_ranks(case, ranks.world_size)]
            pipeline.read_from(iter(batches[:1]))
            pipeline.step()
            pipeline.detach()
            with torch.no_grad():
                prepare(cause, parallel, batches[1], ranks.rank)
            pipeline.read_from(iter(batches[1:]))
            try:
                pipeline.step()
                said[f"{case.name} {cause}"] = "nothing"
            except NonFiniteLossError as error:
                said[f"{case.name} {cause}"] = str(error)
    (folder / f"said_{ranks.rank}.json").write_text(json.dumps(said))
    stop_ranks()


def prepare(cause: str, parallel: ParallelModel, batch, rank: int) -> None:
    """Put a cause into the batch or the model."""
    network = parallel.network
    if cause == "feature" and rank == 1:
        batch.dense_BF[4, 1] = float("nan")
    if cause == "label" and rank == 1:
        batch.labels_BN[2, 1] = float("inf")
    if cause == "table":
        for name, place, part in table_parts(parallel):
            if name == "pooled_adagrad" and place[0] > 0:
                part[1:] = float("inf")
    if cause == "weight":
        _local(network.heads[0][0].weight)[:] = float("nan")
    if cause == "layer":  # every number is finite, their sums are not
        _local(network.dense_arch[0].weight).fill_(3e38)
        batch.dense_BF[0, 2] = 7e9


def _local(weight: torch.Tensor) -> torch.Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
