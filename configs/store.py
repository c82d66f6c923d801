"""STORE (parallel semantic IDs, rotations, efficient attention) and its studies.

farewell train store.movielens1m
farewell compare store.main_movielens1m --seeds 3

`configs.store_studies` builds the studies on any `Source`.
"""

from __future__ import annotations

from configs import datasets, store_studies
from configs.datasets import Source
from configs.id_vs_tokens import SYNTHETIC_ORACLE
from configs.store_rows import StoreRow, opmq
from trainer.comparison import Comparison
from trainer.experiment import Experiment


def experiment(source: Source) -> Experiment:
    """STORE on OPMQ's codes, as in its studies."""
    return StoreRow(source=opmq(source)).sized()


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


def avazu() -> Experiment:
    """On Avazu's log, where an item is a site of (3, 16) codes; see `configs.datasets.avazu`."""
    return experiment(datasets.avazu())


def smoke() -> Experiment:
    """A few steps on a small simulated log: seconds."""
    return experiment(datasets.smoke())


def main_movielens1m() -> Comparison:
    """Table 1: baselines and STORE; on MovieLens-1M."""
    return store_studies.main("store.main_movielens1m", datasets.movielens1m())


def main_movielens1m_collm() -> Comparison:
    """Table 1: baselines and STORE; on CoLLM's split of MovieLens-1M."""
    return store_studies.main("store.main_movielens1m_collm", datasets.movielens1m_collm())


def main_avazu() -> Comparison:
    """Table 1: baselines and STORE; on Avazu's log, whose codes are of SASRec already."""
    return store_studies.main("store.main_avazu", datasets.avazu(), sasrec=False)


def main_synthetic_high_churn() -> Comparison:
    """Table 1: baselines and STORE; on a simulated log of high churn."""
    return store_studies.main(
        "store.main_synthetic_high_churn", datasets.synthetic_high_churn(), SYNTHETIC_ORACLE
    )


def main_smoke() -> Comparison:
    """Table 1: baselines and STORE; on a small simulated log."""
    return store_studies.main("store.main_smoke", datasets.smoke(), SYNTHETIC_ORACLE)


def components_movielens1m() -> Comparison:
    """Table 2: STORE without one part at a time; on MovieLens-1M."""
    return store_studies.components("store.components_movielens1m", datasets.movielens1m())


def components_synthetic_high_churn() -> Comparison:
    """Table 2: STORE without one part at a time; on a simulated log of high churn."""
    return store_studies.components(
        "store.components_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def components_smoke() -> Comparison:
    """Table 2: STORE without one part at a time; on a small simulated log."""
    return store_studies.components("store.components_smoke", datasets.smoke())


def epochs_movielens1m() -> Comparison:
    """Figure 2 (a): epochs with item and with semantic IDs; on MovieLens-1M."""
    return store_studies.epochs("store.epochs_movielens1m", datasets.movielens1m())


def epochs_synthetic_high_churn() -> Comparison:
    """Figure 2 (a): epochs with item and with semantic IDs; on a simulated log of high churn."""
    return store_studies.epochs(
        "store.epochs_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def epochs_smoke() -> Comparison:
    """Figure 2 (a): epochs with item and with semantic IDs; on a small simulated log."""
    return store_studies.epochs("store.epochs_smoke", datasets.smoke())


def num_sids_movielens1m() -> Comparison:
    """Figure 2 (b): number of semantic IDs; on MovieLens-1M."""
    return store_studies.num_sids("store.num_sids_movielens1m", datasets.movielens1m())


def num_sids_synthetic_high_churn() -> Comparison:
    """Figure 2 (b): number of semantic IDs; on a simulated log of high churn."""
    return store_studies.num_sids(
        "store.num_sids_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def num_sids_smoke() -> Comparison:
    """Figure 2 (b): number of semantic IDs; on a small simulated log."""
    return store_studies.num_sids("store.num_sids_smoke", datasets.smoke())


def layers_movielens1m() -> Comparison:
    """Figure 2 (c): layers; on MovieLens-1M."""
    return store_studies.layers("store.layers_movielens1m", datasets.movielens1m())


def layers_synthetic_high_churn() -> Comparison:
    """Figure 2 (c): layers; on a simulated log of high churn."""
    return store_studies.layers(
        "store.layers_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def layers_smoke() -> Comparison:
    """Figure 2 (c): layers; on a small simulated log."""
    return store_studies.layers("store.layers_smoke", datasets.smoke())


def sparsity_movielens1m() -> Comparison:
    """Figure 2 (d): sparsity of attention; on MovieLens-1M."""
    return store_studies.sparsity("store.sparsity_movielens1m", datasets.movielens1m())


def sparsity_synthetic_high_churn() -> Comparison:
    """Figure 2 (d): sparsity of attention; on a simulated log of high churn."""
    return store_studies.sparsity(
        "store.sparsity_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def sparsity_smoke() -> Comparison:
    """Figure 2 (d): sparsity of attention; on a small simulated log."""
    return store_studies.sparsity("store.sparsity_smoke", datasets.smoke())


def ranks_movielens1m() -> Comparison:
    """Section 1: effective rank of embeddings; on MovieLens-1M."""
    return store_studies.ranks("store.ranks_movielens1m", datasets.movielens1m())


def ranks_synthetic_high_churn() -> Comparison:
    """Section 1: effective rank of embeddings; on a simulated log of high churn."""
    return store_studies.ranks("store.ranks_synthetic_high_churn", datasets.synthetic_high_churn())


def ranks_smoke() -> Comparison:
    """Section 1: effective rank of embeddings; on a small simulated log."""
    return store_studies.ranks("store.ranks_smoke", datasets.smoke())


def sources_movielens1m() -> Comparison:
    """Section 3.1.4: codes of SASRec or of the catalogue; on MovieLens-1M."""
    return store_studies.sources("store.sources_movielens1m", datasets.movielens1m())


def sources_synthetic_high_churn() -> Comparison:
    """Section 3.1.4: codes of SASRec or of the catalogue; on a simulated log of high churn."""
    return store_studies.sources(
        "store.sources_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def sources_smoke() -> Comparison:
    """Section 3.1.4: codes of SASRec or of the catalogue; on a small simulated log."""
    return store_studies.sources("store.sources_smoke", datasets.smoke())
