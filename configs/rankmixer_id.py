"""RankMixer with item IDs.

farewell train rankmixer_id.movielens1m
"""

from __future__ import annotations

from configs import datasets
from configs.datasets import Source
from configs.recipe import ID_DIM, ITEM_DIM, RANKMIXER, ranking_experiment
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import ItemIdConfig


def experiment(source: Source) -> Experiment:
    """RankMixer; an item is its ID."""
    item = ItemIdConfig(table_dim=ID_DIM, item_dim=ITEM_DIM, hidden_dims=(192,))
    return ranking_experiment("rankmixer_id", source, item=item, tower=RANKMIXER)


def movielens1m() -> Experiment:
    """On MovieLens-1M."""
    return experiment(datasets.movielens1m())


def movielens100k() -> Experiment:
    """On MovieLens-100K."""
    return experiment(datasets.movielens100k())


def synthetic_high_churn() -> Experiment:
    """On a simulated log whose catalogue changes fast."""
    return experiment(datasets.synthetic_high_churn())


def synthetic_low_churn() -> Experiment:
    """On a simulated log whose catalogue hardly changes."""
    return experiment(datasets.synthetic_low_churn())


def smoke() -> Experiment:
    """A few steps on a small simulated log: seconds."""
    return experiment(datasets.smoke())
