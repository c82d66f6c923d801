"""DIG: a ranker with its item tokenizer inside, which retrieves as well.

farewell train dig.movielens1m
"""

from __future__ import annotations

from dataclasses import replace

from configs import datasets
from configs.datasets import Source
from configs.recipe import ID_DROPOUT, feature_tables
from sharding.tables import TableSpec
from trainer.data.static_features import static_dense, static_fields, without_static
from trainer.experiment import Experiment
from trainer.models.dcn_moe import DCNMoEConfig
from trainer.models.dig_config import DigModelConfig
from trainer.modules.learned_tokens import LearnedTokensConfig
from trainer.optim import OptimConfig

BATCH_SIZE = 2048
OPTIM = OptimConfig(dense_lr=1e-3, sparse_lr=0.05, decay="constant")
"""The paper's Adam at 1e-3; tables have optimizers of their own, fused into the backward pass."""


def experiment(source: Source, item: LearnedTokensConfig) -> Experiment:
    """DIG with the settings of its section 4.1.

    Args:
        source: log; its token settings are not used.
        item: static features, with those that the schema names.
    """
    schema = source.data.schema
    source = replace(source, data=replace(source.data, schema=without_static(schema)))
    return Experiment(
        name="dig",
        data=source.data,
        tables=(*feature_tables(source), *sid_tables(item)),
        model=DigModelConfig(item=item, tower=DCNMoEConfig(), id_dropout=ID_DROPOUT),
        optim=replace(OPTIM, warmup_steps=source.warmup_steps),
        train=replace(source.train, batch_size=min(BATCH_SIZE, source.train.batch_size)),
    )


def sid_tables(item: LearnedTokensConfig) -> tuple[TableSpec, ...]:
    """One table of SID embeddings for each field of the item (Eq. 5)."""
    return tuple(
        TableSpec(
            name=feature,
            rows=item.table_rows,
            dim=dim,
            features=(feature,),
            role="gen_token",
            pooling="none",
            optimizer="adagrad",
            init_std=0.05,
        )
        for feature, dim in item.table_dims.items()
    )


def with_texts(source: Source, *, text_fields: int) -> Experiment:
    """DIG on a log whose items have static columns and MiniLM embeddings of their texts.

    Args:
        source: log, and where the embeddings are.
        text_fields: fields that the embedding becomes; see `LearnedTokensConfig`.
    """
    schema = source.data.schema
    item = LearnedTokensConfig(
        fields=static_fields(schema),
        dense_columns=static_dense(schema),
        text_dim=384,
        text_fields=text_fields,
        embeddings=source.tokens.embeddings,
    )
    return experiment(source, item)


def movielens1m() -> Experiment:
    """On MovieLens-1M: year, genres and the title's MiniLM embedding."""
    return with_texts(datasets.movielens1m(), text_fields=2)


def movielens1m_last_click() -> Experiment:
    """On MovieLens-1M cut by each user's last likes (leave-one-out)."""
    return with_texts(datasets.movielens1m_last_click(), text_fields=2)


def amazon_beauty() -> Experiment:
    """On Amazon Beauty: categories and the title's MiniLM embedding."""
    return with_texts(datasets.amazon_beauty(), text_fields=3)


def smoke() -> Experiment:
    """A few steps on a small simulated log, with a small tokenizer."""
    source = datasets.smoke()
    schema = source.data.schema
    item = LearnedTokensConfig(
        fields=static_fields(schema),
        dense_columns=static_dense(schema),
        text_dim=datasets.SMOKE.embedding_dim,
        text_fields=2,
        embedding_column="embedding",
        dim=32,
        num_layers=1,
        num_heads=2,
        num_levels=3,
        num_codes=32,
    )
    return experiment(source, item)
