"""What a run cost and how large its model is."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Any

from sharding.tables import parameters_by_role
from trainer.batch import Batch
from trainer.data.schema import DatasetSchema
from trainer.experiment import Experiment
from trainer.flops import next_token_flops, training_flops
from trainer.parallelize import ParallelModel


@dataclass
class Clock:
    """Time and samples spent in training steps, without evaluation and checkpoints."""

    seconds: float = 0.0
    samples: int = 0

    @property
    def samples_per_s(self) -> float:
        """Throughput over all ranks."""
        return self.samples / self.seconds if self.seconds else float("nan")


def run_cost(
    experiment: Experiment,
    schema: DatasetSchema,
    parallel: ParallelModel,
    *,
    sample: Batch,
    num_items: int,
    clock: Clock,
) -> dict[str, Any]:
    """Sizes of the model, FLOPs of a step, time and throughput.

    Args:
        experiment: that was run.
        schema: of the log.
        parallel: the model on its ranks.
        sample: batch that FLOPs are counted for.
        num_items: of the catalogue.
        clock: of the run's steps.
    """
    tables = experiment.tables
    counted_for: dict[str, Any] = {
        "tables": tables,
        "num_tasks": len(schema.labels),
        "num_histories": len(schema.histories),
        "roles": experiment.context_roles,
        "batch": sample,
        "num_items": num_items,
    }
    return {
        "dense_params": sum(parameter.numel() for parameter in parallel.network.parameters()),
        "sparse_params": parameters_by_role(tables),
        "sparse_bytes": sum(table.num_bytes for table in tables),
        "sparse_state_bytes": sum(table.num_state_bytes for table in tables),
        "batch_size": experiment.train.batch_size,
        "flops_batch": sample.batch_size,
        "flops_per_batch": training_flops(experiment.model, **counted_for),
        "next_token_flops_per_batch": next_token_flops(experiment.model, **counted_for),
        "samples_per_s": clock.samples_per_s,
        "train_seconds": clock.seconds,
        "samples": clock.samples,
        "uses_fsdp": parallel.uses_fsdp,
    }


def peak_memory_bytes() -> int:
    """Largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
