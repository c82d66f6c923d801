"""TRM with its joint objective: hybrid tokens on RankMixer, and the next-token module beside it.

farewell train trm_joint.movielens1m
farewell evaluate trm_joint.movielens1m --folder runs/trm_joint/<time> --generate 50
"""

from __future__ import annotations

from dataclasses import replace

from configs import datasets
from configs.datasets import Source
from configs.recipe import RANKMIXER, ranking_experiment, token_encoder
from trainer.experiment import Experiment
from trainer.modules.next_token_config import NextTokenConfig

NEXT_TOKEN = NextTokenConfig(dim=64)


def experiment(source: Source) -> Experiment:
    """RankMixer on gen- and mem-tokens; discriminative and generative loss (TRM Eq. 7)."""
    item = token_encoder(source, mem_tokens=True)
    return ranking_experiment(
        "trm_joint", source, item=item, tower=RANKMIXER, next_token=NEXT_TOKEN
    )


def movielens1m() -> Experiment:
    """On MovieLens-1M, in small batches: what generates has thousands of tuples to learn."""
    source = datasets.movielens1m()
    train = replace(source.train, batch_size=512, num_epochs=2, eval_every=1560)
    return experiment(replace(source, train=train))


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
