"""The main job: what happens when item IDs go and semantic tokens come.

farewell compare id_vs_tokens.movielens1m
"""

from __future__ import annotations

from collections.abc import Mapping

from configs import datasets, dlrm_id, rankmixer_gen, rankmixer_id, trm_rankmixer
from configs.datasets import Source
from trainer.baselines.bias import BiasBaseline
from trainer.baselines.boosted_trees import BoostedTreesBaseline
from trainer.comparison import ComparedRow, Comparison

SYNTHETIC_ORACLE = {"click": "p_click", "play": "p_play"}


def comparison(name: str, source: Source, oracle: Mapping[str, str] | None = None) -> Comparison:
    """Two rows without embeddings, two with item IDs, two with tokens."""
    return Comparison(
        name=name,
        baselines=(BiasBaseline(), BoostedTreesBaseline()),
        rows=(
            ComparedRow(
                title="DLRM-MLP (ID)",
                tower="DLRM-MLP",
                experiment=dlrm_id.experiment(source),
            ),
            ComparedRow(
                title="RankMixer (ID)",
                tower="RankMixer",
                experiment=rankmixer_id.experiment(source),
            ),
            ComparedRow(
                title="RankMixer (gen-tokens)",
                tower="RankMixer",
                experiment=rankmixer_gen.experiment(source),
            ),
            ComparedRow(
                title="RankMixer (hybrid = TRM)",
                tower="RankMixer",
                experiment=trm_rankmixer.experiment(source),
            ),
        ),
        oracle=oracle or {},
    )


def movielens1m() -> Comparison:
    """On MovieLens-1M: what `make demo` runs."""
    return comparison("id_vs_tokens.movielens1m", datasets.movielens1m())


def movielens100k() -> Comparison:
    """On MovieLens-100K: a minute."""
    return comparison("id_vs_tokens.movielens100k", datasets.movielens100k())


def synthetic_high_churn() -> Comparison:
    """On a simulated log whose catalogue changes fast; the best possible AUC is known."""
    return comparison(
        "id_vs_tokens.synthetic_high_churn", datasets.synthetic_high_churn(), SYNTHETIC_ORACLE
    )


def synthetic_low_churn() -> Comparison:
    """On a simulated log whose catalogue hardly changes."""
    return comparison(
        "id_vs_tokens.synthetic_low_churn", datasets.synthetic_low_churn(), SYNTHETIC_ORACLE
    )


def smoke() -> Comparison:
    """On a small simulated log: does every row run?"""
    return comparison("id_vs_tokens.smoke", datasets.smoke(), SYNTHETIC_ORACLE)
