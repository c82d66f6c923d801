"""The data sets that experiments are named after, with token settings that suit their size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenization.mem_tokens import MemTokens
from tokenization.rq_kmeans import RQKMeans
from trainer.data.movielens import SCHEMA_1M, SCHEMA_100K
from trainer.data.synthetic_config import SyntheticConfig, high_churn, low_churn, schema
from trainer.experiment import DataConfig, TokensConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log and what experiments need to know of it.

    Args:
        data: the log.
        tokens: how its items are tokenized.
        num_items: rows of an item-ID table.
        residual_ids: features whose tables count as `residual_id`: IDs that stay in every model.
        train: batch and length that suit the log.
        warmup_steps: steps over which learning rates rise.
    """

    data: DataConfig
    tokens: TokensConfig
    num_items: int
    residual_ids: tuple[str, ...]
    train: TrainConfig
    warmup_steps: int = 50


def with_tokens(source: Source, name: str, **changes: Any) -> Source:
    """The same log with tokens of another kind, in a folder of their own.

    Args:
        source: log and tokens to start from.
        name: of the folder, beside that of the tokens to start from.
        changes: fields of `TokensConfig`: `tokenizer`, `mem`, `collisions`, `alignment`.

    Example::

        tiger = with_tokens(
            movielens1m(), "tokens_tiger", tokenizer=RQVAE(num_levels=4, num_codes=64)
        )
    """
    folder = source.tokens.folder.with_name(name)
    return replace(source, tokens=replace(source.tokens, folder=folder, **changes))


def movielens1m() -> Source:
    """MovieLens-1M; gen rows + mem rows stay below 67 % of the 3,706 films."""
    folder = Path("data/movielens1m")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_1M),
        tokens=TokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            tokenizer=RQKMeans(num_levels=5, num_codes=64),
            mem=MemTokens(num_merges=2100),
        ),
        num_items=3706,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=4096, num_epochs=1, eval_every=65),
    )


def movielens100k() -> Source:
    """MovieLens-100K: small enough for a first look."""
    folder = Path("data/movielens100k")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_100K, shuffle_rows=65_536),
        tokens=TokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            tokenizer=RQKMeans(num_levels=4, num_codes=48),
            mem=MemTokens(num_merges=800),
        ),
        num_items=1682,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=1024, num_epochs=1),
        warmup_steps=10,
    )


def synthetic_high_churn() -> Source:
    """A simulated search log in which 30 % of the catalogue is new every day."""
    return synthetic(Path("data/synthetic_high_churn"), high_churn())


def synthetic_low_churn() -> Source:
    """The same world with 1 % new items a day."""
    return synthetic(Path("data/synthetic_low_churn"), low_churn())


def smoke() -> Source:
    """A small simulated log, for seconds of training."""
    return synthetic(Path("data/smoke"), SMOKE)


SMOKE = SyntheticConfig(
    num_rows=20_000, num_items=400, num_users=500, num_queries=100, days=7, branching=(4, 4, 4)
)


def synthetic(folder: Path, config: SyntheticConfig) -> Source:
    """A log of `trainer.data.synthetic`; tokens are fitted on what can be observed of items."""
    small = config.num_items_ever < 5_000
    return Source(
        data=DataConfig(folder=folder, schema=schema(config)),
        tokens=TokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            embedding_column="embedding",
            tokenizer=RQKMeans(num_levels=4, num_codes=32 if small else 128),
            mem=MemTokens(num_merges=config.num_items_ever // 4),
        ),
        num_items=config.num_items_ever,
        residual_ids=("user_id", "query_id"),
        train=TrainConfig(batch_size=256 if small else 4096, num_epochs=1),
        warmup_steps=10 if small else 50,
    )
