"""The MLP baseline with item IDs.

farewell train dlrm_id.movielens1m
"""

from __future__ import annotations

from configs import datasets
from configs.datasets import Source
from configs.recipe import DLRM_MLP, ID_DIM, ITEM_DIM, ranking_experiment
from trainer.experiment import Experiment
from trainer.modules.hybrid_tokens import ItemIdConfig


def experiment(source: Source) -> Experiment:
    """DLRM-MLP; an item is its ID."""
    item = ItemIdConfig(table_dim=ID_DIM, item_dim=ITEM_DIM)
    return ranking_experiment("dlrm_id", source, item=item, tower=DLRM_MLP)


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
