"""The data sets that experiments are named after, with token settings that suit their size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenization.mem_tokens import MemTokens
from tokenization.rq_kmeans import RQKMeans
from trainer.data.movielens import SCHEMA_1M, SCHEMA_100K
from trainer.experiment import DataConfig, TokensConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log and what experiments need to know of it.

    Args:
        data: the log.
        tokens: how its items are tokenized.
        num_items: rows of an item-ID table.
        residual_ids: features whose tables count as `residual_id`: IDs that stay in every model.
    """

    data: DataConfig
    tokens: TokensConfig
    num_items: int
    residual_ids: tuple[str, ...]


def movielens1m() -> Source:
    """MovieLens-1M; gen rows + mem rows stay below 67 % of the 3,706 films."""
    folder = Path("data/movielens1m")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_1M),
        tokens=TokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            tokenizer=RQKMeans(num_levels=4, num_codes=128),
            mem=MemTokens(num_merges=1900),
        ),
        num_items=3706,
        residual_ids=("user_id",),
    )


def movielens100k() -> Source:
    """MovieLens-100K: small enough for a first look."""
    folder = Path("data/movielens100k")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_100K, shuffle_rows=65_536),
        tokens=TokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            tokenizer=RQKMeans(num_levels=4, num_codes=64),
            mem=MemTokens(num_merges=800),
        ),
        num_items=1682,
        residual_ids=("user_id",),
    )
