"""TRM's studies (section 4 of the paper) on the logs that this package knows.

farewell compare trm.main_movielens1m --seeds 3

Studies share what they train: cells of `main` serve the others, and the other way round.
`configs.trm_studies` builds them on any `Source`.
"""

from __future__ import annotations

from configs import datasets, trm_studies
from configs.id_vs_tokens import SYNTHETIC_ORACLE
from trainer.comparison import Comparison


def main_movielens1m() -> Comparison:
    """Table 1: towers and tokens; on MovieLens-1M."""
    return trm_studies.main("trm.main_movielens1m", datasets.movielens1m())


def main_synthetic_high_churn() -> Comparison:
    """Table 1: towers and tokens; on a simulated log of high churn."""
    return trm_studies.main(
        "trm.main_synthetic_high_churn", datasets.synthetic_high_churn(), SYNTHETIC_ORACLE
    )


def main_smoke() -> Comparison:
    """Table 1: towers and tokens; on a small simulated log."""
    return trm_studies.main("trm.main_smoke", datasets.smoke(), SYNTHETIC_ORACLE)


def components_movielens1m() -> Comparison:
    """Table 2: TRM without one part at a time; on MovieLens-1M."""
    return trm_studies.components("trm.components_movielens1m", datasets.movielens1m())


def components_synthetic_high_churn() -> Comparison:
    """Table 2: TRM without one part at a time; on a simulated log of high churn."""
    return trm_studies.components(
        "trm.components_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def components_smoke() -> Comparison:
    """Table 2: TRM without one part at a time; on a small simulated log."""
    return trm_studies.components("trm.components_smoke", datasets.smoke())


def next_token_movielens1m() -> Comparison:
    """Table 3: the next-token loss and its transformer; on MovieLens-1M."""
    return trm_studies.next_token("trm.next_token_movielens1m", datasets.movielens1m())


def next_token_synthetic_high_churn() -> Comparison:
    """Table 3: the next-token loss and its transformer; on a simulated log of high churn."""
    return trm_studies.next_token(
        "trm.next_token_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def next_token_smoke() -> Comparison:
    """Table 3: the next-token loss and its transformer; on a small simulated log."""
    return trm_studies.next_token("trm.next_token_smoke", datasets.smoke())


def token_sets_movielens1m() -> Comparison:
    """Table 5: BPE, 2-grams, prefix-n-grams; on MovieLens-1M."""
    return trm_studies.token_sets("trm.token_sets_movielens1m", datasets.movielens1m())


def token_sets_synthetic_high_churn() -> Comparison:
    """Table 5: BPE, 2-grams, prefix-n-grams; on a simulated log of high churn."""
    return trm_studies.token_sets(
        "trm.token_sets_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def token_sets_smoke() -> Comparison:
    """Table 5: BPE, 2-grams, prefix-n-grams; on a small simulated log."""
    return trm_studies.token_sets("trm.token_sets_smoke", datasets.smoke())


def position_movielens1m() -> Comparison:
    """Table 6: next-token loss and positional encoding; on MovieLens-1M."""
    return trm_studies.position("trm.position_movielens1m", datasets.movielens1m())


def position_synthetic_high_churn() -> Comparison:
    """Table 6: next-token loss and positional encoding; on a simulated log of high churn."""
    return trm_studies.position(
        "trm.position_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def position_smoke() -> Comparison:
    """Table 6: next-token loss and positional encoding; on a small simulated log."""
    return trm_studies.position("trm.position_smoke", datasets.smoke())


def mem_tokens_movielens1m() -> Comparison:
    """Figure 5: number of mem-tokens by item age; on MovieLens-1M."""
    return trm_studies.mem_tokens("trm.mem_tokens_movielens1m", datasets.movielens1m())


def mem_tokens_synthetic_high_churn() -> Comparison:
    """Figure 5: number of mem-tokens by item age; on a simulated log of high churn."""
    return trm_studies.mem_tokens(
        "trm.mem_tokens_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def mem_tokens_smoke() -> Comparison:
    """Figure 5: number of mem-tokens by item age; on a small simulated log."""
    return trm_studies.mem_tokens("trm.mem_tokens_smoke", datasets.smoke())


def token_types_movielens1m() -> Comparison:
    """Figure 3: gain over item IDs by kind of token; on MovieLens-1M."""
    return trm_studies.token_types("trm.token_types_movielens1m", datasets.movielens1m())


def token_types_synthetic_high_churn() -> Comparison:
    """Figure 3: gain over item IDs by kind of token; on a simulated log of high churn."""
    return trm_studies.token_types(
        "trm.token_types_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def token_types_smoke() -> Comparison:
    """Figure 3: gain over item IDs by kind of token; on a small simulated log."""
    return trm_studies.token_types("trm.token_types_smoke", datasets.smoke())


def geometry_movielens1m() -> Comparison:
    """Figure 1: spread of embeddings over training, size; on MovieLens-1M."""
    return trm_studies.geometry("trm.geometry_movielens1m", datasets.movielens1m())


def geometry_synthetic_high_churn() -> Comparison:
    """Figure 1: spread of embeddings over training, size; on a simulated log of high churn."""
    return trm_studies.geometry(
        "trm.geometry_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def geometry_smoke() -> Comparison:
    """Figure 1: spread of embeddings over training, size; on a small simulated log."""
    return trm_studies.geometry("trm.geometry_smoke", datasets.smoke(), sizes=(200_000, 400_000))


def activity_movielens1m() -> Comparison:
    """In place of Table 4: gain by user activity; on MovieLens-1M."""
    return trm_studies.activity("trm.activity_movielens1m", datasets.movielens1m())


def activity_synthetic_high_churn() -> Comparison:
    """In place of Table 4: gain by user activity; on a simulated log of high churn."""
    return trm_studies.activity(
        "trm.activity_synthetic_high_churn", datasets.synthetic_high_churn()
    )


def activity_smoke() -> Comparison:
    """In place of Table 4: gain by user activity; on a small simulated log."""
    return trm_studies.activity("trm.activity_smoke", datasets.smoke())
