"""RankMixer with gen-tokens in place of item IDs.

farewell train rankmixer_gen.movielens1m
"""

from __future__ import annotations

from configs import datasets
from configs.datasets import Source
from configs.recipe import RANKMIXER, ranking_experiment, token_encoder
from trainer.experiment import Experiment


def experiment(source: Source) -> Experiment:
    """RankMixer; an item is its gen-tokens."""
    item = token_encoder(source, mem_tokens=False)
    return ranking_experiment("rankmixer_gen", source, item=item, tower=RANKMIXER)


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
