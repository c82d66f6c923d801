"""What the planner wants to know of an experiment: how often tables are read, the network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.dry_run import DenseReserve
from sharding.tables import TableSpec
from trainer.data.dataset import Dataset
from trainer.experiment import Experiment
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.run_inputs import FLOPS_BATCH, item_features, last_batch, load_tokens


def measured_tables(experiment: Experiment, batch_size: int) -> tuple[tuple[TableSpec, ...], str]:
    """The tables with ids per impression as the log has them, and a note on where they are from.

    Tables that state their own `pooling_factors` keep them. Item tables are read once for each
    distinct item of a batch, so their factor is that of a batch of 4,096 impressions. SID
    embeddings of a model that learns its tokens are read whole in each step.

    Args:
        experiment: whose tables they are.
        batch_size: impressions per rank and step that are planned for.
    """
    missing = [
        str(path)
        for path in (
            experiment.data.folder,
            *([experiment.tokenizer.folder] if experiment.tokenizer is not None else []),
        )
        if not path.exists()
    ]
    if missing:
        note = f"{', '.join(missing)} not there: tables without pooling_factors are read once an "
        return experiment.tables, note + "impression and feature"
    dataset = Dataset.open(experiment.data.folder, experiment.data.schema)
    features = item_features(experiment, dataset, load_tokens(experiment))
    splits = dataset.split(experiment.data.split)
    batch = last_batch(dataset, features, splits.train, FLOPS_BATCH)
    factors = {
        key: count / batch.batch_size
        for ids in (batch.pooled, batch.items)
        for key, count in _ids_by_key(ids).items()
    }
    if isinstance(experiment.model.item, LearnedTokensConfig):
        # Codes are chosen inside the network, so every row is looked up in each step.
        for table in experiment.item_tables.values():
            factors |= dict.fromkeys(table.features, table.rows / batch_size)
    tables = tuple(
        table
        if table.pooling_factors is not None
        else replace(table, pooling_factors=tuple(factors[name] for name in table.features))
        for table in experiment.tables
    )
    return tables, f"ids per impression from {batch.batch_size:,} impressions of the log"


def _ids_by_key(ids: KeyedJaggedTensor) -> dict[str, int]:
    return {key: int(ids[key].lengths().sum()) for key in ids.keys()}  # noqa: SIM118


def dense_reserve(experiment: Experiment) -> DenseReserve:
    """Size of the network, built on the meta device."""
    schema = experiment.data.schema
    with torch.device("meta"):
        network = experiment.model.build_network(
            tables=experiment.tables,
            num_dense=len(schema.dense_features),
            num_tasks=len(schema.labels),
            num_histories=len(schema.histories),
            roles=experiment.context_roles,
        )
    total = sum(parameter.numel() for parameter in network.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in network.fsdp_units()]
    outside = total - sum(blocks)
    return DenseReserve(
        num_parameters=total,
        sharded=total >= experiment.sharding.fsdp_min_parameters,
        largest_unit=max([outside, *blocks]),
    )
