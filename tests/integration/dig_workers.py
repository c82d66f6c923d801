"""What ranks do in the test of DIG; spawned processes import it."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.integration.tiny_dig import (
    SEED,
    batches_of_ranks,
    dig_model,
    initial_table,
    tables,
)
from tests.integration.workers import table_parts
from trainer.distributed import start_ranks, stop_ranks
from trainer.models.dig_config import DigModelConfig
from trainer.optim import OptimConfig
from trainer.parallelize import ShardingConfig, parallelize
from trainer.pipeline import RankingPipeline

NUM_STEPS, BATCH = 6, 24
OPTIM = OptimConfig(dense_lr=1e-3, sparse_lr=0.1, sparse_eps=1e-4, max_dense_norm=1.0)


def train_dig(configs: dict[str, DigModelConfig], folder: Path) -> None:
    """Train each and leave `<name>_rank<r>.pt`."""
    ranks = start_ranks()
    for name, config in configs.items():
        parallel = parallelize(
            dig_model("meta", config),
            tables=tables(config.item),
            ranks=ranks,
            optim=OPTIM,
            sharding=ShardingConfig(),
            batch_size=BATCH // ranks.world_size,
            num_steps=NUM_STEPS,
            seed=SEED,
        )
        for table, (row, column), part in table_parts(parallel):
            spec = next(one for one in tables(config.item) if one.name == table)
            full = initial_table(table, spec.rows, spec.dim)
            part.copy_(full[row : row + part.shape[0], column : column + part.shape[1]])
        pipeline = RankingPipeline(parallel, ranks, folder / "non_finite")
        parallel.model.train()
        steps = batches_of_ranks(NUM_STEPS, BATCH, ranks.world_size)
        pipeline.read_from(iter([parts[ranks.rank] for parts in steps]))
        losses, encoder = [], []
        for _ in steps:
            outputs = pipeline.step()
            encoder.append(parallel.network.encoder.project.weight_TIO.detach().clone())
            losses.append({name: float(value) for name, value in outputs.losses.items()})
        torch.save(
            {
                "losses": losses,
                "encoder": encoder,
                "state": {k: v.clone() for k, v in parallel.network.state_dict().items()},
                "tables": [(n, place, part.clone()) for n, place, part in table_parts(parallel)],
                "codes": parallel.network.catalogue_codes(),
            },
            folder / f"{name}_rank{ranks.rank}.pt",
        )
    stop_ranks()
