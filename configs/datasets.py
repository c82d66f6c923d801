"""The data sets that experiments are named after, with token settings that suit their size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenization.mem_tokens import MemTokens
from tokenization.opmq import OPMQ
from tokenization.rq_kmeans import RQKMeans
from tokenization.tokenizers import AnyTokenizer
from trainer.data.amazon_beauty import SCHEMA_BEAUTY
from trainer.data.avazu import NUM_SITES, SCHEMA_AVAZU
from trainer.data.criteo import NUM_ITEMS, SCHEMA_CRITEO
from trainer.data.kuairec import NUM_VIDEOS, SCHEMAS_KUAIREC
from trainer.data.last_click import SPLIT_AT_LAST_CLICKS, of_last_clicks
from trainer.data.movielens import (
    COLLM_SPLIT,
    SCHEMA_1M,
    SCHEMA_1M_COLLM,
    SCHEMA_1M_LAST_CLICK,
    SCHEMA_100K,
)
from trainer.data.open_bandit import CAMPAIGNS, SCHEMA_OPEN_BANDIT
from trainer.data.synthetic_config import SyntheticConfig, high_churn, low_churn, schema
from trainer.data.taobao_ad import NUM_ADS, SCHEMA_TAOBAO_AD
from trainer.experiment import DataConfig, TokensConfig, TrainConfig
from trainer.sasrec_tokens import SASRecTokensConfig


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


def tokens_in(folder: Path, tokenizer: AnyTokenizer, *, num_merges: int) -> TokensConfig:
    """Tokens in the folder of a log, beside the embeddings that they are fitted on.

    Args:
        folder: of the log.
        tokenizer: of gen-tokens.
        num_merges: mem-tokens, made by byte pair encoding.
    """
    return TokensConfig(
        folder=folder / "tokens",
        embeddings=folder / "item_embeddings.parquet",
        tokenizer=tokenizer,
        mem=MemTokens(num_merges=num_merges),
    )


def movielens1m() -> Source:
    """MovieLens-1M; gen rows + mem rows stay below 67 % of the 3,706 films."""
    folder = Path("data/movielens1m")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_1M),
        tokens=tokens_in(folder, RQKMeans(num_levels=5, num_codes=64), num_merges=2100),
        num_items=3706,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=4096, num_epochs=1, eval_every=65),
    )


def movielens1m_collm() -> Source:
    """CoLLM's split of MovieLens-1M: 33,891 rows to train on, so few and small steps."""
    folder = Path("data/movielens1m_collm")
    return Source(
        data=DataConfig(
            folder=folder, schema=SCHEMA_1M_COLLM, split=COLLM_SPLIT, shuffle_rows=65_536
        ),
        tokens=tokens_in(folder, RQKMeans(num_levels=4, num_codes=48), num_merges=1500),
        num_items=3255,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=512, num_epochs=1),
        warmup_steps=10,
    )


def movielens1m_last_click() -> Source:
    """MovieLens-1M cut by each user's last two likes: leave-one-out, for retrieval."""
    source, folder = movielens1m(), Path("data/movielens1m_last_click")
    return replace(
        source,
        data=DataConfig(folder=folder, schema=SCHEMA_1M_LAST_CLICK, split=SPLIT_AT_LAST_CLICKS),
        tokens=replace(
            source.tokens,
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
        ),
    )


def amazon_beauty() -> Source:
    """Amazon Beauty, leave-one-out; gen rows + mem rows stay below 67 % of the 12,101 items.

    As `farewell data amazon-beauty` writes it the log has positives alone: for retrieval. Rankers
    want `amazon_beauty_sampled`.
    """
    return _amazon_beauty(Path("data/amazon_beauty"))


def amazon_beauty_sampled() -> Source:
    """The same with one item drawn at random beside each review, label 0.

    `farewell data amazon-beauty --source ... --folder data/amazon_beauty_sampled --negatives 1`
    """
    return _amazon_beauty(Path("data/amazon_beauty_sampled"))


def _amazon_beauty(folder: Path) -> Source:
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_BEAUTY, split=SPLIT_AT_LAST_CLICKS),
        tokens=tokens_in(folder, RQKMeans(num_levels=4, num_codes=256), num_merges=7_000),
        num_items=12_101,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=2048, num_epochs=1),
        warmup_steps=10,
    )


def avazu() -> Source:
    """Avazu's public file; tokens of (3, 16), as STORE has them on this log.

    Sites come without texts: what tokens are fitted on is made beforehand, by `farewell embed
    --items data/avazu/items.parquet --sasrec-log data/avazu/interactions --sasrec-missing mean
    --out data/avazu/item_embeddings.parquet` (of impressions, not clicks: most sites have some).
    """
    folder = Path("data/avazu")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_AVAZU),
        tokens=tokens_in(folder, OPMQ(num_levels=3, num_codes=16), num_merges=0),
        num_items=NUM_SITES,
        residual_ids=("device_id", "device_ip"),
        train=TrainConfig(batch_size=4096, num_epochs=1),
    )


def criteo() -> Source:
    """Criteo's public file. It has no users, so nothing to fit tokens of its "items" on.

    Item-ID models alone are of use; the tokens are those of `avazu`, for an embedding file that
    you bring.
    """
    folder = Path("data/criteo")
    return replace(
        avazu(),
        data=DataConfig(folder=folder, schema=SCHEMA_CRITEO),
        tokens=tokens_in(folder, avazu().tokens.tokenizer, num_merges=0),
        num_items=NUM_ITEMS,
        residual_ids=(),
    )


def kuairec_big() -> Source:
    """KuaiRec's big matrix, cut by each user's last positive views, as in DIG's section 4.1."""
    folder = Path("data/kuairec_big")
    return Source(
        data=DataConfig(
            folder=folder,
            schema=of_last_clicks(SCHEMAS_KUAIREC["big"]),
            split=SPLIT_AT_LAST_CLICKS,
        ),
        tokens=tokens_in(folder, RQKMeans(num_levels=4, num_codes=256), num_merges=6_000),
        num_items=NUM_VIDEOS["big"],
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=4096, num_epochs=1, eval_every=1_000),
    )


def kuairec_small() -> Source:
    """KuaiRec's small matrix, nearly all pairs of its users and videos; cut as the big one."""
    big, folder = kuairec_big(), Path("data/kuairec_small")
    return replace(
        big,
        data=replace(big.data, folder=folder, schema=of_last_clicks(SCHEMAS_KUAIREC["small"])),
        tokens=tokens_in(folder, RQKMeans(num_levels=4, num_codes=64), num_merges=1_900),
        num_items=NUM_VIDEOS["small"],
    )


def taobao_ad() -> Source:
    """Taobao's display ads, cut by each user's last clicks, as in DIG's section 4.1.

    Ads come without texts, so tokens are fitted on SASRec's embeddings.
    """
    folder = Path("data/taobao_ad")
    return Source(
        data=DataConfig(
            folder=folder, schema=of_last_clicks(SCHEMA_TAOBAO_AD), split=SPLIT_AT_LAST_CLICKS
        ),
        tokens=SASRecTokensConfig(
            folder=folder / "tokens",
            embeddings=folder / "item_embeddings.parquet",
            tokenizer=RQKMeans(num_levels=4, num_codes=1_024),
            mem=MemTokens(num_merges=400_000),
        ),
        num_items=NUM_ADS,
        residual_ids=("user_id",),
        train=TrainConfig(batch_size=4096, num_epochs=1, eval_every=2_000),
    )


def open_bandit() -> Source:
    """Open Bandit's small version: 60,000 impressions and 287 clicks, to see that it runs.

    Items have neither texts nor sequences: the tokens are for an embedding file that you bring.
    """
    folder = Path("data/open_bandit")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_OPEN_BANDIT, shuffle_rows=65_536),
        tokens=tokens_in(folder, RQKMeans(num_levels=2, num_codes=16), num_merges=0),
        num_items=sum(CAMPAIGNS.values()),
        residual_ids=(),
        train=TrainConfig(batch_size=512, num_epochs=1),
        warmup_steps=10,
    )


def movielens100k() -> Source:
    """MovieLens-100K: small enough for a first look."""
    folder = Path("data/movielens100k")
    return Source(
        data=DataConfig(folder=folder, schema=SCHEMA_100K, shuffle_rows=65_536),
        tokens=tokens_in(folder, RQKMeans(num_levels=4, num_codes=48), num_merges=800),
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
