"""How an experiment is put together from a data set, an item encoder and a tower."""

from __future__ import annotations

from dataclasses import replace

from configs.datasets import Source
from sharding.managed_ids import ManagedIds
from sharding.tables import TableRole, TableSpec
from trainer.experiment import Experiment
from trainer.models.dlrm import DLRMConfig
from trainer.models.ranking_model import RankingModelConfig
from trainer.models.rankmixer import RankMixerConfig
from trainer.models.tower import TowerConfig
from trainer.modules.hybrid_tokens import (
    GEN_TOKEN,
    ITEM_ID,
    MEM_TOKEN,
    HybridTokensConfig,
    ItemIdConfig,
)
from trainer.modules.next_token_config import NextTokenConfig
from trainer.modules.parallel_tokens import ItemConfig, TokenItemConfig
from trainer.optim import OptimConfig

ID_DIM = 32
SIDE_DIM = 8
ITEM_DIM = 48
ID_DROPOUT = 0.5
RANKMIXER = RankMixerConfig(num_tokens=8, dim=64, num_layers=2, expansion=2.0)
DLRM_MLP = DLRMConfig(hidden_dims=(256, 128))
MANAGED = ManagedIds(policy="distance_lfu", eviction_interval=4)
OPTIM = OptimConfig(dense_lr=2e-3, sparse_lr=0.05, warmup_steps=50, decay="linear")


def ranking_experiment(
    name: str,
    source: Source,
    *,
    item: ItemConfig,
    tower: TowerConfig,
    next_token: NextTokenConfig | None = None,
    id_rows: int | None = None,
) -> Experiment:
    """One experiment; ID and token models differ in `item` and its tables alone.

    Args:
        name: of the run.
        source: data set and token settings.
        item: what stands for an item.
        tower: interaction architecture.
        next_token: the generative objective; None trains the discriminative one alone.
        id_rows: rows of the table of item IDs; None for one an item.
    """
    return Experiment(
        name=name,
        data=source.data,
        tables=(*feature_tables(source), *item_tables(source, item, id_rows)),
        tokenizer=source.tokens if isinstance(item, TokenItemConfig) else None,
        model=RankingModelConfig(
            item=item, tower=tower, next_token=next_token, id_dropout=ID_DROPOUT
        ),
        optim=replace(OPTIM, warmup_steps=source.warmup_steps),
        train=source.train,
    )


def with_all_checkpoints(experiment: Experiment, source: Source) -> Experiment:
    """The same training, with all its checkpoints kept: two of the warm-up, and as often after."""
    every = max(1, source.warmup_steps // 2)
    train = replace(experiment.train, checkpoint_every=every, keep_checkpoints=1_000)
    return replace(experiment, train=train)


def id_encoder() -> ItemIdConfig:
    """An item is its ID."""
    return ItemIdConfig(table_dim=ID_DIM, item_dim=ITEM_DIM, hidden_dims=(192,))


def token_encoder(
    source: Source, *, gen_tokens: bool = True, mem_tokens: bool = True, positions: bool = False
) -> HybridTokensConfig:
    """An item is its tokens; widths make dense parameters agree with the ID model within 5 %."""
    return HybridTokensConfig(
        num_levels=source.tokens.num_levels,
        table_dim=ID_DIM,
        item_dim=ITEM_DIM,
        hidden_dims=(96,),
        dropout=0.1,
        gen_tokens=gen_tokens,
        mem_tokens=mem_tokens,
        positions=positions,
    )


def feature_tables(source: Source) -> tuple[TableSpec, ...]:
    """One pooled table for each categorical and bag feature of the schema."""
    return tuple(
        TableSpec(
            name=feature.name,
            rows=feature.cardinality,
            dim=ID_DIM if feature.name in source.residual_ids else SIDE_DIM,
            features=(feature.name,),
            role="residual_id" if feature.name in source.residual_ids else "side",
        )
        for feature in source.data.schema.pooled_features
    )


def item_tables(
    source: Source, item: ItemConfig, id_rows: int | None = None
) -> tuple[TableSpec, ...]:
    """The tables that hold what stands for an item.

    Args:
        source: data set and token settings.
        item: what stands for an item.
        id_rows: rows of the table of item IDs; None for one an item.
    """
    rows = id_rows or source.num_items
    if isinstance(item, ItemIdConfig):
        managed = MANAGED if item.rows == "managed" else None
        return (_item_table(ITEM_ID, "item_id", rows, item.table_dim, managed),)
    tables = []
    if item.gen_tokens:
        tables.append(_item_table(GEN_TOKEN, "gen_token", source.tokens.gen_rows, item.table_dim))
    if item.mem_tokens:
        tables.append(_item_table(MEM_TOKEN, "mem_token", source.tokens.mem_rows, item.table_dim))
    if item.residual_id_dim is not None:
        tables.append(_item_table(ITEM_ID, "residual_id", rows, item.residual_id_dim))
    return tuple(tables)


def _item_table(
    name: str, role: TableRole, rows: int, dim: int, managed: ManagedIds | None = None
) -> TableSpec:
    return TableSpec(
        name=name,
        rows=rows,
        dim=dim,
        features=(name,),
        role=role,
        pooling="none",
        managed=managed,
    )
