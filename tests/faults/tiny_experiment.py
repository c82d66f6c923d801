"""Experiments that faults happen to: an ID model on a few thousand impressions.

Also read by the command line, as `path/to/tiny_experiment.py:killed`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs import datasets, rankmixer_id
from trainer.data.synthetic_config import SyntheticConfig
from trainer.experiment import Experiment
from trainer.models.rankmixer import RankMixerConfig

LOG = SyntheticConfig(
    num_rows=6_000, num_items=60, num_users=100, num_queries=30, days=4, branching=(3, 3, 3)
)


def tiny() -> Experiment:
    """12 steps, a checkpoint after every fourth."""
    experiment = rankmixer_id.experiment(datasets.synthetic(Path("data/tiny"), LOG))
    return replace(
        experiment,
        name="tiny",
        data=replace(experiment.data, shuffle_rows=512),
        model=replace(
            experiment.model,
            tower=RankMixerConfig(num_tokens=4, dim=16, num_layers=1, expansion=2.0),
        ),
        train=replace(
            experiment.train,
            batch_size=64,
            max_steps=12,
            log_every=2,
            eval_every=10_000,
            eval_batch_size=1024,
            checkpoint_every=4,
            keep_checkpoints=10,
            precision="fp32",
        ),
    )


def killed() -> Experiment:
    """Long enough to be hit from outside: 120 steps, a checkpoint after every fifth."""
    experiment = tiny()
    return replace(
        experiment,
        name="killed",
        train=replace(experiment.train, num_epochs=100, max_steps=120, checkpoint_every=5),
    )


def too_large() -> Experiment:
    """Has a table that no machine holds."""
    experiment = tiny()
    tables = tuple(
        replace(table, rows=10**11) if table.name == "user_id" else table
        for table in experiment.tables
    )
    return replace(experiment, tables=tables)
