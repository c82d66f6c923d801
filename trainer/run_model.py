"""The model of a run: built, drawn, and spread over its ranks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchrec.distributed.types import ShardingPlan

from sharding.plan_io import plan_from_json, read_given_plan
from trainer.data.schema import DatasetSchema
from trainer.distributed import Ranks, runs_bf16_natively
from trainer.experiment import Experiment
from trainer.initialize import parameters_on_meta
from trainer.models.dig import DigNetwork
from trainer.models.ranking_model import Precision, RankingModel
from trainer.modules.vq_encoder import StaticFeatures
from trainer.parallelize import ParallelModel, parallelize

logger = logging.getLogger(__name__)


def build_model(
    experiment: Experiment,
    schema: DatasetSchema,
    ranks: Ranks,
    *,
    precision: Precision,
    sample_SF: NDArray[np.float32],
    num_steps: int,
    given_plan: Path,
    catalogue: StaticFeatures | None = None,
) -> ParallelModel:
    """The experiment's model on its ranks, ready to train.

    No rank ever holds the whole network, unless it is replicated: it is built without memory.

    Args:
        experiment: what to build.
        schema: of the log.
        ranks: this process among all.
        precision: of the network.
        sample_SF: dense features of some training rows, for the bins; the same on every rank.
        num_steps: length of the schedule.
        given_plan: file of a plan that is executed, where it exists and is for as many ranks.
        catalogue: static features of all items, for a model with a tokenizer inside.

    Raises:
        PlanMismatchError: when the plan was made for other tables, ranks or devices.
        PlanDoesNotFitError: when the tables do not fit on the ranks.
    """
    train = experiment.train
    with parameters_on_meta():
        model = RankingModel(
            experiment.model,
            tables=experiment.tables,
            num_dense=len(schema.dense_features),
            num_tasks=len(schema.labels),
            num_histories=len(schema.histories),
            roles=experiment.context_roles,
            sparse_device=torch.device("meta"),
            precision=precision,
        )
    model.network.dense_encoding.fit(sample_SF)
    if isinstance(model.network, DigNetwork):
        assert catalogue is not None
        model.network.encoder.take_catalogue(catalogue)
    # Ranks differ in what they draw from here on: shards of tables, dropout masks.
    torch.manual_seed(train.seed * 100_003 + ranks.rank)
    return parallelize(
        model,
        tables=experiment.tables,
        ranks=ranks,
        optim=experiment.optim,
        sharding=experiment.sharding,
        batch_size=train.batch_size // ranks.world_size,
        num_steps=num_steps,
        plan=_given_plan(given_plan, experiment, ranks),
        seed=train.seed,
        compiled=train.compile,
        activation_checkpointing=train.activation_checkpointing,
        gradient_accumulation=train.gradient_accumulation,
    )


def sid_outcome(network: nn.Module) -> dict[str, Any]:
    """What has become of the SIDs of a tokenizer inside the model, for `result.json`.

    Every rank calls this.
    """
    if not isinstance(network, DigNetwork):
        return {}
    if isinstance(network, FSDPModule):
        network.unshard()
    return {"sids": network.sids()}


def read_plan(values: Mapping[str, Any], experiment: Experiment, ranks: Ranks) -> ShardingPlan:
    """TorchRec's plan from a run's given plan.

    Raises:
        PlanMismatchError: when it was made for other tables, ranks or devices.
    """
    return plan_from_json(
        values,
        experiment.tables,
        num_ranks=ranks.world_size,
        ranks_per_node=ranks.local_world_size,
        device=ranks.device.type,
    )


def _given_plan(path: Path, experiment: Experiment, ranks: Ranks) -> ShardingPlan | None:
    """The plan that the run was started with, where it was and is for as many ranks."""
    if not path.exists():
        return None
    values = read_given_plan(path, ranks.world_size)
    if values.get("num_ranks", ranks.world_size) != ranks.world_size:
        logger.warning(
            "the run was started with a plan for %s ranks and goes on with %d: planned anew; give "
            "--plan to choose",
            values["num_ranks"],
            ranks.world_size,
        )
        return None
    return read_plan(values, experiment, ranks)


def resolve_precision(experiment: Experiment, ranks: Ranks) -> Precision:
    """The precision in force; `auto` is bf16 where the processor multiplies it natively."""
    precision = experiment.train.precision
    if precision == "auto":
        resolved: Precision = "bf16" if runs_bf16_natively(ranks.device) else "fp32"
        logger.info("precision: %s", resolved)
        return resolved
    if precision == "bf16" and not runs_bf16_natively(ranks.device):
        logger.warning("train.precision is bf16, but this processor emulates it: expect it slower")
    return precision
